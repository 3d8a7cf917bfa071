"""Which way of training wins on the user's data, from how many labels on, by how much and at what cost?"""
