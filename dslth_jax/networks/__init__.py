"""The networks, as pure functions of one agent's world."""
