"""Many runs: the file that names them, the jobs, and the engines that work through them."""
