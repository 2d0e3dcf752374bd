package auditevents

// Recorded says what a call of the gRPC API leaves in the audit log.
type Recorded struct {
	// Events are the names of its records.
	Events []string
	// None says why there is no record, or not of each outcome.
	None string
}

const (
	status  = "a status, which changes nothing and shows no secret"
	refused = "invalid parameters change nothing, and are not recorded"
)

// Calls has every call of the gRPC API that is not an operation of AWS, by SERVICE/METHOD.
// Callers without an operator's certificate, or without valid credentials, are strangers: they are refused before
// anything is recorded, counted in metrics and summed up in the node's log.
var Calls = map[string]Recorded{
	"Operator/Status":                {None: status},
	"Operator/Init":                  {Events: []string{"Init"}, None: refused},
	"Operator/Challenge":             {None: "a public key for the shares; the first share begins the ceremony"},
	"Operator/SubmitShare":           {Events: []string{"SubmitShare", "Unseal", "AbandonShares"}},
	"Operator/ResetShares":           {Events: []string{"ResetShares"}, None: "nothing is wiped if there are no shares"},
	"Operator/Seal":                  {Events: []string{"Seal"}},
	"Operator/ConfirmTime":           {Events: []string{"ConfirmTime"}},
	"Operator/InstallCRL":            {Events: []string{"InstallCRL"}},
	"Operator/BeginBreakGlass":       {Events: []string{"BeginBreakGlass"}, None: refused},
	"Operator/GetBreakGlass":         {None: status},
	"Operator/SubmitBreakGlassShare": {Events: []string{"SubmitBreakGlassShare", "CompleteBreakGlass"}},
	"Operator/CancelBreakGlass":      {Events: []string{"CancelBreakGlass"}},
	"Operator/BeginKeyChange":        {Events: []string{"BeginRekey", "BeginRootRotation", "BeginKeyringRotation"}, None: refused},
	"Operator/GetKeyChange":          {None: status},
	"Operator/SubmitKeyChangeShare":  {Events: []string{"SubmitRekeyShare", "SubmitRootRotationShare", "SubmitKeyringRotationShare", "SubmitKeyChangeShare", "AuthorizeRekey", "CompleteRekey", "CompleteRootRotation", "CompleteKeyringRotation"}},
	"Operator/GetNewShares":          {Events: []string{"IssueRekeyShares"}},
	"Operator/CancelKeyChange":       {Events: []string{"CancelRekey", "CancelRootRotation", "CancelKeyringRotation", "CancelKeyChange"}},
	"Operator/GetShareSet":           {None: "public values: commitments and the names of custodians"},
	"Operator/SaveSnapshot":          {Events: []string{"SaveSnapshot"}},
	"Operator/NameCustodians":        {Events: []string{"NameCustodians"}, None: refused},
	"Operator/CheckSnapshot":         {Events: []string{"CheckSnapshot"}},
	"Session/Create":                 {Events: []string{"CreateSession"}, None: "a proof that is not valid is of a stranger"},
	"Credentials/List":               {Events: []string{"ListCredentials"}},
	"Credentials/CreateAccessKey":    {Events: []string{"CreateAccessKey"}},
	"Credentials/Delete":             {Events: []string{"DeleteCredential"}},
	"Credentials/RevokeSessions":     {Events: []string{"RevokeSessions"}},
	"Accounts/Create":                {Events: []string{"CreateAccount"}},
	"Accounts/List":                  {Events: []string{"ListAccounts"}},
	"CertificateMappings/Create":     {Events: []string{"CreateCertificateMapping"}},
	"CertificateMappings/List":       {Events: []string{"ListCertificateMappings"}},
	"CertificateMappings/Delete":     {Events: []string{"DeleteCertificateMapping"}},
	"Audit/Read":                     {Events: []string{"ReadAudit"}},
	"Audit/GetReceipt":               {Events: []string{"GetRecordReceipt"}},
	"Audit/Search":                   {Events: []string{"SearchAudit"}, None: refused},
	"Audit/ListSinks":                {Events: []string{"ListAuditSinks"}},
	"Audit/ForgetSink":               {Events: []string{"ForgetAuditSink"}, None: refused},
	"Usage/Get":                      {Events: []string{"GetUsage"}, None: refused},
	"Usage/Keys":                     {Events: []string{"ListKeyUsage"}, None: refused},
	"Cluster/Members":                {None: status},
	"Cluster/UpgradeStatus":          {None: status},
	"Cluster/FinalizeUpgrade":        {Events: []string{"FinalizeUpgrade"}, None: "an upgrade that cannot be finalized yet changes nothing"},
	"Cluster/AddNode":                {Events: []string{"AddNode"}, None: "only the leader does it, and others refuse without a record"},
	"Cluster/PromoteNode":            {Events: []string{"PromoteNode"}, None: "only the leader does it, and others refuse without a record"},
	"Cluster/RemoveNode":             {Events: []string{"RemoveNode"}, None: "only the leader does it, and others refuse without a record"},
	"Cluster/TransferLeadership":     {Events: []string{"TransferLeadership"}, None: "only the leader does it, and others refuse without a record"},
	"Cluster/SetNodeAddress":         {Events: []string{"SetNodeAddress"}, None: "only the leader does it, and others refuse without a record"},
	"Cluster/GetPeerUnseal":          {None: status},
	"Cluster/SetPeerUnseal":          {Events: []string{"SetPeerUnseal"}, None: refused},
	"Cluster/ListSeals":              {None: status},
	"Cluster/RemoveSeal":             {Events: []string{"RemoveSeal"}, None: refused},
	"Cluster/GetNodeCA":              {None: status},
	"Cluster/ImportNodeCA":           {Events: []string{"ImportCA"}, None: refused},
	"Cluster/RemoveNodeCA":           {Events: []string{"RemoveCA"}, None: refused},
	"Cluster/CreateJoinToken":        {Events: []string{"CreateJoinToken"}, None: refused},
	"Joining/GetJoinAuthority":       {None: "a machine that wants to join is a stranger until it shows its token"},
	"Joining/JoinCluster":            {Events: []string{"JoinNode"}, None: "a token that the cluster did not make is of a stranger"},
}
