package iamops

import (
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/webidentity"
	"github.com/conclavekms/conclave/policy"
)

// AWS's quotas for identity providers.
const (
	maxProviders   = 100 // of an account
	maxClientIDs   = 100
	maxThumbprints = 5
)

const resourceProvider = "AWS::IAM::OIDCProvider"

func providerARN(ev *request.Evaluation, url string) string {
	return "arn:" + partition(ev) + ":iam::" + request.AccountOf(ev).String() + ":oidc-provider/" + url
}

// findProvider authorises the operation on the identity provider with an ARN, and returns the
// provider.
func findProvider(ev *request.Evaluation, arn string) (*fsmpb.OidcProvider, error) {
	p, err := policy.ParseProvider(arn)
	url := iam.ProviderURL(arn)
	if err != nil || url == "" {
		return nil, invalidInput("ARN %s is not valid.", arn)
	}
	if arn != providerARN(ev, url) {
		return nil, foreign(ev, p.ARN)
	}
	m := request.Read[*fsmpb.OidcProvider](ev, fsm.OidcProviderID(request.AccountOf(ev), url))
	ev.Resource(resourceProvider, arn)
	if err := ev.AuthoriseNamed(ev.Op.Action(), arn, &request.Conditions{Tags: m.GetTags()}, arn, &request.Conditions{}); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, noSuch("OpenIDConnect Provider not found for arn %s", arn)
	}
	return m, nil
}

// changeProvider authorises the operation on an identity provider and edits a copy of it. If
// the copy differs afterwards, it replaces the provider.
func changeProvider(ev *request.Evaluation, arn string, edit func(*fsmpb.OidcProvider) error) error {
	m, err := findProvider(ev, arn)
	if err != nil {
		return err
	}
	next := proto.CloneOf(m)
	if err := edit(next); err != nil {
		return err
	}
	if !proto.Equal(m, next) {
		ev.Change(putProvider(next))
	}
	return nil
}

func putProvider(m *fsmpb.OidcProvider) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutOidcProvider{PutOidcProvider: m}}
}

func createOpenIDConnectProvider(ev *request.Evaluation, in *iamapi.CreateOpenIDConnectProviderInput) (*iamapi.CreateOpenIDConnectProviderOutput, error) {
	issuer, err := issuerURL(*in.Url)
	if err != nil {
		return nil, err
	}
	arn := providerARN(ev, issuer)
	ev.Resource(resourceProvider, arn)
	if err := ev.AuthoriseAccount(ev.Op.Action(), arn); err != nil {
		return nil, err
	}
	if err := authoriseTags(ev, "iam:TagOpenIDConnectProvider", arn, in.Tags); err != nil {
		return nil, err
	}
	m := &fsmpb.OidcProvider{Account: account(ev), Url: issuer, ClientIds: in.ClientIDList, Created: ev.Now().UnixNano()}
	if request.Read[*fsmpb.OidcProvider](ev, fsm.OidcProviderID(request.AccountOf(ev), issuer)) != nil {
		return nil, exists("Provider with url %s already exists.", *in.Url)
	}
	if err := checkClientIDs(m.ClientIds); err != nil {
		return nil, err
	}
	if m.Thumbprints, err = thumbprints(in.ThumbprintList); err != nil {
		return nil, err
	}
	if m.Tags, err = addTags(ev, nil, in.Tags); err != nil {
		return nil, err
	}
	n := 0
	for range fsm.Objects[*fsmpb.OidcProvider](ev.State, fsm.AccountID(request.AccountOf(ev)), "") {
		n++ // not in the read set: concurrent requests may exceed the quota slightly
	}
	if n >= maxProviders {
		return nil, quotaExceeded("OpenIdConnectProvidersPerAccount", maxProviders)
	}
	ev.Change(putProvider(m))
	return &iamapi.CreateOpenIDConnectProviderOutput{OpenIDConnectProviderArn: &arn, Tags: tagsOf(m.Tags)}, nil
}

// issuerURL returns the URL of an issuer without its scheme, as it stands in ARNs and in the
// names of condition keys. It must be exactly what the issuer writes into its tokens.
func issuerURL(s string) (string, error) {
	u, err := url.Parse(s)
	rest, ok := strings.CutPrefix(s, "https://")
	if err != nil || !ok || u.Hostname() == "" || u.User != nil || strings.ContainsAny(s, "?#*\\ ") || u.Host+u.EscapedPath() != rest {
		return "", invalidInput("The URL of an identity provider is https://, a host and a path, without a query: %.255q.", s)
	}
	return rest, nil
}

func checkClientIDs(ids []string) error {
	if len(ids) > maxClientIDs {
		return quotaExceeded("ClientIdsPerOpenIdConnectProvider", maxClientIDs)
	}
	for i, id := range ids {
		if slices.Contains(ids[:i], id) {
			return invalidInput("Duplicate client ID: %s", id)
		}
	}
	return nil
}

// thumbprints returns the SHA-1 thumbprints of certificates, in lower case.
func thumbprints(list []string) ([]string, error) {
	if len(list) > maxThumbprints {
		return nil, invalidInput("Thumbprint list must contain fewer than %d entries.", maxThumbprints+1)
	}
	out := make([]string, 0, len(list))
	for _, t := range list {
		if b, err := hex.DecodeString(t); err != nil || len(b) != 20 {
			return nil, invalidInput("A thumbprint is 40 hexadecimal digits: %.64q.", t)
		}
		out = append(out, strings.ToLower(t))
	}
	return out, nil
}

func getOpenIDConnectProvider(ev *request.Evaluation, in *iamapi.GetOpenIDConnectProviderInput) (*iamapi.GetOpenIDConnectProviderOutput, error) {
	m, err := findProvider(ev, *in.OpenIDConnectProviderArn)
	if err != nil {
		return nil, err
	}
	return &iamapi.GetOpenIDConnectProviderOutput{
		Url: &m.Url, ClientIDList: append([]string{}, m.ClientIds...), ThumbprintList: append([]string{}, m.Thumbprints...),
		CreateDate: timeOf(m.Created), Tags: tagsOf(m.Tags),
	}, nil
}

func listOpenIDConnectProviders(ev *request.Evaluation, _ *iamapi.ListOpenIDConnectProvidersInput) (*iamapi.ListOpenIDConnectProvidersOutput, error) {
	if err := ev.AuthoriseAccount(ev.Op.Action(), "*"); err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &iamapi.ListOpenIDConnectProvidersOutput{OpenIDConnectProviderList: []iamapi.OpenIDConnectProviderListEntry{}}
		for m := range fsm.Objects[*fsmpb.OidcProvider](s, fsm.AccountID(request.AccountOf(ev)), "") {
			out.OpenIDConnectProviderList = append(out.OpenIDConnectProviderList, iamapi.OpenIDConnectProviderListEntry{Arn: new(providerARN(ev, m.Url))})
		}
		return out, nil
	}
	return nil, nil
}

func deleteOpenIDConnectProvider(ev *request.Evaluation, in *iamapi.DeleteOpenIDConnectProviderInput) error {
	m, err := findProvider(ev, *in.OpenIDConnectProviderArn)
	if err != nil {
		return err
	}
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteOidcProvider{DeleteOidcProvider: &fsmpb.EntityID{Account: m.Account, Name: m.Url}}})
	return nil
}

func updateOpenIDConnectProviderThumbprint(ev *request.Evaluation, in *iamapi.UpdateOpenIDConnectProviderThumbprintInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) (err error) {
		m.Thumbprints, err = thumbprints(in.ThumbprintList)
		return err
	})
}

func addClientID(ev *request.Evaluation, in *iamapi.AddClientIDToOpenIDConnectProviderInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) error {
		if !slices.Contains(m.ClientIds, *in.ClientID) {
			m.ClientIds = append(m.ClientIds, *in.ClientID)
		}
		return checkClientIDs(m.ClientIds)
	})
}

func removeClientID(ev *request.Evaluation, in *iamapi.RemoveClientIDFromOpenIDConnectProviderInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) error {
		m.ClientIds = slices.DeleteFunc(m.ClientIds, func(id string) bool { return id == *in.ClientID })
		return nil
	})
}

func tagProvider(ev *request.Evaluation, in *iamapi.TagOpenIDConnectProviderInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) (err error) {
		m.Tags, err = addTags(ev, m.Tags, in.Tags)
		return err
	})
}

func untagProvider(ev *request.Evaluation, in *iamapi.UntagOpenIDConnectProviderInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) error {
		m.Tags = removeTags(m.Tags, in.TagKeys)
		return nil
	})
}

func listProviderTags(ev *request.Evaluation, in *iamapi.ListOpenIDConnectProviderTagsInput) (*iamapi.ListOpenIDConnectProviderTagsOutput, error) {
	m, err := findProvider(ev, *in.OpenIDConnectProviderArn)
	if err != nil {
		return nil, err
	}
	var out iamapi.ListOpenIDConnectProviderTagsOutput
	out.Tags, out.Marker, out.IsTruncated, err = pageOfTags(ev, m.Tags, *in.OpenIDConnectProviderArn, paging{in.MaxItems, in.Marker})
	return &out, err
}

// updateProviderKeys sets the keys of an issuer, which are then not read from its URL. An empty
// set makes the node read them there again.
func updateProviderKeys(ev *request.Evaluation, in *iamapi.UpdateOpenIDConnectProviderKeysInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) error {
		m.Jwks = []byte(*in.JSONWebKeySet)
		if len(m.Jwks) == 0 {
			return nil
		}
		if err := webidentity.CheckKeys(m.Jwks); err != nil {
			return invalidInput("The keys of an issuer are a JSON Web Key Set (RFC 7517) of public keys: %v.", err)
		}
		return nil
	})
}

// revocationLead is how far ahead of this node's clock a revocation of all sessions is. It has
// to be recorded in this time.
const revocationLead = 2 * time.Second

// revokedBefore returns the time before which sessions end: that of the request or, for all
// that are open, one that is still to come when the revocation is recorded. A session that is
// recorded before begins at a cluster time before it, and one that is recorded after has read
// the revocation and begins no earlier than it. The time is never before one that was set
// earlier, since what was revoked stays so. It is after one that is still to come: sessions that
// have read that one begin with it, whatever this node's clock says, and end too.
func revokedBefore(ev *request.Evaluation, olderThan *time.Time, was int64) int64 {
	now := ev.Now()
	if olderThan != nil && !olderThan.After(now) {
		return max(olderThan.UnixNano(), was)
	}
	until := now.Add(revocationLead).UnixNano()
	ev.Within(0, until)
	return max(until, was+1)
}

// revokeRoleSessions ends the sessions of a role that were opened before a time. Once it has
// returned, no node answers a request that is received with one of them.
func revokeRoleSessions(ev *request.Evaluation, in *iamapi.RevokeRoleSessionsInput) error {
	return roles.change(ev, *in.RoleName, nil, func(r *fsmpb.Role) error {
		r.RevokedBefore = revokedBefore(ev, in.OlderThan, r.RevokedBefore)
		return nil
	})
}

// revokeProviderSessions is revokeRoleSessions for the sessions of all roles that were opened
// with an identity of an issuer.
func revokeProviderSessions(ev *request.Evaluation, in *iamapi.RevokeOpenIDConnectProviderSessionsInput) error {
	return changeProvider(ev, *in.OpenIDConnectProviderArn, func(m *fsmpb.OidcProvider) error {
		m.RevokedBefore = revokedBefore(ev, in.OlderThan, m.RevokedBefore)
		return nil
	})
}
