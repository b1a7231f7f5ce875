"""What every command has: settings and their flags, a look at where it will write, words for a lack of memory."""
