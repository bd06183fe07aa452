"""Who is asking. Until the service has keys, everyone who can reach it is one tenant."""

ONLY_TENANT = "default"
