"""Files of which something is promised: whole or not there, one command's at a time, not from elsewhere."""
