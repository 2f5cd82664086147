"""What plugins see: the hooks, the types they exchange with Enclave, and the manager that loads them."""
