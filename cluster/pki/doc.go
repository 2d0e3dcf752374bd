// Package pki implements the certificates of a cluster: the CA that issues them, the
// identities in them, a node's TLS configurations, and the certificate revocation lists.
//
// An identity proves which node it is, and nothing more: anyone with a copy of it can
// connect in that node's name until the certificate is revoked.
package pki
