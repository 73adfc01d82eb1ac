"""What a process finds around it: its terminal, signals that stop it, and the machine."""
