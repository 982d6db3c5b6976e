"""What tests share: real servers, started on free loopback ports and ended afterwards."""
