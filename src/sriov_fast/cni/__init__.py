"""The protocol: environment, arguments and configuration in, results and errors out. No NIC here."""
