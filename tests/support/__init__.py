"""What several tests share: pools, commands, servers on loopback, small runs. Holds no tests."""
