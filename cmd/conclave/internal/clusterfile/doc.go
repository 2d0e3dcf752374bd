// Package clusterfile reads files that describe a new cluster, and makes what they describe:
// its first accounts, principals, certificate mappings and keys.
//
// The reader may rely on this. A file is checked as a whole, by the rules that the server has,
// before anything is done. What exists is never changed: it is compared with the file, and a
// difference is reported. What is missing is made. So a run that was interrupted can be
// repeated, and a run after which nothing was missing changes nothing.
package clusterfile
