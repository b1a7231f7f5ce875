"""Any model to one feature map per stage."""
