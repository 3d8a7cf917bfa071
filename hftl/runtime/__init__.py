"""What does this machine have, and how does the process use it?"""
