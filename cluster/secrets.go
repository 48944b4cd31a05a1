package cluster

// Secrets are a cluster's passwords and keys. They are made once, kept in the folder secrets/ beside the spec, and
// never changed by imagegen afterwards; a node or role that is added later gets its own, the others keep theirs.
type Secrets struct {
	ClusterID string            // UUID
	Passwords map[string]string // by name: letters and digits only, so that no format needs to quote them
	CA        KeyPair
	Nodes     map[string]KeyPair // by node name; the certificate's DNS name is the node's name, its IP the node's
	Operator  KeyPair            // client certificate for imagegen status; its name is "operator"
}

// KeyPair is a certificate and its private key, both PEM.
type KeyPair struct {
	Cert, Key []byte
}
