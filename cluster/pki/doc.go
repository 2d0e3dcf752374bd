// Package pki has the certificates of a cluster: the CA that issues them, who a
// certificate stands for, a node's identity with the TLS configurations made of it, and the
// revocation lists that take certificates back.
//
// A node's identity proves which node it is, and nothing more: whoever has a copy of it
// connects in that node's name until the certificate is revoked.
package pki
