"""Where jobs run: processes of this machine, and what starts workers on others."""
