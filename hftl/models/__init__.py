"""Networks: how they are loaded, headed, frozen and adapted."""
