"""OpenImage-MINI, selected from the tables of Open Images."""
