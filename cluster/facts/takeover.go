package facts

// TakeoverPath is where an agent takes over a newer seed of its node, from the operator: POST a Bundle, as JSON. With ?plan=1 it
// only answers with the Plan, also for a generation that is not in use yet. GET returns the Trial, or 204 if there is none.
const TakeoverPath = "/v1/takeover"

// ConfirmPath ends a trial that has passed: POST with ?seed=DIGEST. The previous seed and its secrets are erased.
const ConfirmPath = "/v1/takeover/confirm"

// Bundle is a newer seed of a node, with everything that is needed to verify it and to take it over without parsing it.
type Bundle struct {
	Generation    []byte `json:"generation"` // the signed manifest, which has the digests of the seed and of the facts
	MetaData      []byte `json:"meta_data"`
	NetworkConfig []byte `json:"network_config"`
	UserData      []byte `json:"user_data"`
	Facts         []byte `json:"facts"` // which have the digests of the files
	// Files are the contents of files in user-data, by path: at least of those that the node does not have.
	Files map[string][]byte `json:"files"`
}

// Plan says what taking over a seed does, or why the node must be replaced instead.
type Plan struct {
	Seed    string       `json:"seed"` // digest
	Files   []FileChange `json:"files"`
	Stop    []string     `json:"stop,omitempty"`   // units, in order; the agent starts them again with the new files
	Reload  []string     `json:"reload,omitempty"` // units, in order
	Replace []string     `json:"replace,omitempty"`
	// Fixed are those of the reasons to replace the node which say that what its files declare as fixed has changed: nodes with the old
	// text and with the new one may not work side by side.
	Fixed []string `json:"fixed,omitempty"`
	// Refuse says what the seed changes that would have no effect, on a new node either.
	Refuse []string `json:"refuse,omitempty"`
}

// FileChange is a file that differs between two seeds.
type FileChange struct {
	Path   string `json:"path"`
	What   string `json:"what"` // added, removed or changed
	Change Change `json:"change,omitempty"`
	Unit   string `json:"unit,omitempty"`
}

// Trial is the state of the last takeover.
type Trial struct {
	State    TrialState `json:"state"`
	Seed     string     `json:"seed"`     // digest of the seed that was to be taken over
	Previous string     `json:"previous"` // of the one before
	Detail   string     `json:"detail,omitempty"`
}

// TrialState is how far a takeover is.
type TrialState string

const (
	TrialSwitching TrialState = "switching" // to the new seed
	TrialRunning   TrialState = "trial"     // runs the new seed, and goes back if it does not become ready in time
	TrialPassed    TrialState = "passed"    // has been ready for a while; the previous seed is kept until it is confirmed
	TrialReturning TrialState = "returning" // to the previous seed
	TrialReturned  TrialState = "returned"  // runs the previous seed; Detail says why
	TrialConfirmed TrialState = "confirmed" // erasing the previous seed
)
