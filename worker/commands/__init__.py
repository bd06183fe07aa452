"""Commands on one engine: build, verify, measure. Run by `nightcourt engine`, each as a process of its own."""
