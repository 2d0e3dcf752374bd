package queryapi

import (
	"time"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// service is what the face has to know of a service, besides its operations.
type service struct {
	version   string // of its API
	namespace string // of its answers
	internal  string // code of an internal error
	verifier  *sigv4.Verifier
}

// presigned is how long a presigned request is valid that does not say so. SDKs presign
// GetCallerIdentity like that.
const presigned = 15 * time.Minute

var (
	iamService = &service{"2010-05-08", "https://iam.amazonaws.com/doc/2010-05-08/", "ServiceFailure", sigv4.NewVerifier("iam").Expiring(presigned)}
	stsService = &service{"2011-06-15", "https://sts.amazonaws.com/doc/2011-06-15/", "InternalFailure", sigv4.NewVerifier("sts").Expiring(presigned)}
)

// serviceNamed returns the service with that name in signatures, or nil.
func serviceNamed(name string) *service {
	switch name {
	case "iam":
		return iamService
	case "sts":
		return stsService
	}
	return nil
}

// serviceOfVersion returns the service whose API has that version, or nil.
func serviceOfVersion(version string) *service {
	for _, s := range [...]*service{iamService, stsService} {
		if s.version == version {
			return s
		}
	}
	return nil
}
