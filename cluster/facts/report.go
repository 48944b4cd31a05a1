package facts

import (
	"encoding/json"
	"time"
)

// StatePath is the path of the agent's API that answers with a NodeReport, as JSON.
const StatePath = "/v1/state"

// JointHeader of a request to StatePath has the asking node's Joint, as JSON: who asks is perhaps not known to whom it asks.
const JointHeader = "Imagegen-Joint"

// DecidePath accepts an operator's Decision: POST, as JSON, with the operator's certificate.
const DecidePath = "/v1/decide"

// LogsPath returns the node's journal to the operator, as text: GET, with ?since=DURATION (such as 15m, counted back
// from now) and ?follow=1.
const LogsPath = "/v1/logs"

// EventsPath returns Events to the operator, as JSON: GET, with ?since=DURATION (counted back from now).
const EventsPath = "/v1/events"

// BrickPath answers other servers of a GlusterFS volume with what is in the node's brick, as an archive of tar's: GET.
const BrickPath = "/v1/brick"

// GenerationPath answers peers and the operator with the state of the node's acceptor (package agree), as JSON: GET; with
// ?digest=DIGEST, with the signed manifest of that generation. The operator POSTs a request to the acceptor and gets its reply.
const GenerationPath = "/v1/generation"

// HandoverPath has the node hand over what it leads to others of its role, before it is restarted or replaced: POST, with the
// operator's certificate. The answer is a Handover, or 409 and why nobody takes over. It may take half a minute.
const HandoverPath = "/v1/handover"

// Handover says what a node has handed over. A virtual address, the master of Redis and the writes of Galera can be.
type Handover struct {
	Moved []string `json:"moved"` // in words; empty: the node leads nothing
}

// SeedPath returns the KeptSeed to the operator, as JSON: GET. It contains the node's secrets. With ?digest=DIGEST it may also be the one
// to which the node can still go back.
const SeedPath = "/v1/seed"

// KeptSeed is the seed that the node runs, one field per file.
type KeptSeed struct {
	MetaData      []byte `json:"meta_data"`
	NetworkConfig []byte `json:"network_config"`
	UserData      []byte `json:"user_data"`
	Generation    []byte `json:"generation,omitempty"`
}

// GenerationReport is what a node says of the cluster's configuration.
type GenerationReport struct {
	// Number and Digest are those of the generation that the node conforms to; 0 and empty: its seed belongs to none.
	Number int    `json:"number,omitempty"`
	Digest string `json:"digest,omitempty"`
	// InUse is the number of the latest generation that the node knows to be in use; 0: it knows of none.
	InUse int `json:"in_use,omitempty"`
	// Behind says why the node does not conform to that; empty: it does.
	Behind string `json:"behind,omitempty"`
	// Error says what is wrong with the generation on the node's seed, or with its memory of generations.
	Error string `json:"error,omitempty"`
}

// Events lists what happened on a node, as far as its agent remembers.
type Events struct {
	Node   string  `json:"node"`
	Events []Event `json:"events"` // oldest first
}

// Event is something that happened.
type Event struct {
	Time      time.Time `json:"time"`                // by the node's clock
	Component string    `json:"component,omitempty"` // empty: concerns the node
	Text      string    `json:"text"`
}

// OperatorName is the common name of the operator's certificate. No node may have this name.
const OperatorName = "operator"

// Decision lets a component continue without nodes whose reports it waits for. Data that only these nodes have may then
// be lost.
type Decision struct {
	Component string   `json:"component"`
	Without   []string `json:"without"` // names of nodes
}

// NodeReport is what an agent reports about its node to peers and the operator.
type NodeReport struct {
	Cluster    string                     `json:"cluster"`
	ClusterID  string                     `json:"cluster_id"`
	Node       Peer                       `json:"node"`
	Ready      bool                       `json:"ready"` // all components are ready
	Components map[string]ComponentReport `json:"components"`
	Order      []string                   `json:"order"` // of the components, as in the facts
	// Ages says for each component that has a report how old that was when the agent answered, in milliseconds.
	Ages  map[string]int64 `json:"ages_ms,omitempty"`
	Heard []string         `json:"heard"` // peers that answered this node recently
	// Holds lists the virtual addresses that the node currently has.
	Holds []string `json:"holds,omitempty"`
	Trial *Trial   `json:"trial,omitempty"` // of the last seed taken over; nil: there is none, or it was confirmed
	// Generation is nil for an agent of an earlier imagegen.
	Generation *GenerationReport `json:"generation,omitempty"`
	// Joint is nil for a node that decides nothing together with the others of its role, and for an agent of an earlier imagegen.
	Joint *Joint `json:"joint,omitempty"`
	Made
}

// Joint says which nodes of a node's role count for it. While the cluster changes from one generation to another, these are the
// members of both.
type Joint struct {
	Role   string `json:"role"`
	Number int    `json:"number"` // of the generation that the node conforms to; 0: none
	// Settled is the number of a generation whose members have all done their work without anybody else: earlier ones are forgotten.
	Settled int          `json:"settled,omitempty"`
	InUse   []Membership `json:"in_use"` // that count, the oldest first
}

// Membership is the nodes of a role in one generation.
type Membership struct {
	Number  int    `json:"number"` // of the generation; 0: of the time before generations
	Members []Peer `json:"members"`
}

// Made identifies what a node was made from.
type Made struct {
	// Image is the identity of the node's image; empty: not known, the image is of an earlier imagegen.
	Image string `json:"image,omitempty"`
	// Seed is the digest of the seed that the node runs; empty if unknown.
	Seed string `json:"seed,omitempty"`
	// Machine is unique to each root disk. If it changes, the node was recreated.
	Machine string `json:"machine,omitempty"`
}

// ComponentReport is what one component of a node reports.
type ComponentReport struct {
	Kind   string          `json:"kind"`
	Status Status          `json:"status"`
	Is     string          `json:"is,omitempty"`     // its part among its peers: master, 3 of 3 members, …
	Since  time.Time       `json:"since"`            // when State last changed, by the node's clock; for display
	Report json.RawMessage `json:"report,omitempty"` // what the component observed, for its peers
}

// Status is the state of a component.
type Status struct {
	State State `json:"state"`
	// Detail says in a few words what the component waits for, does, or what is wrong.
	Detail string `json:"detail,omitempty"`
	// Missing lists the silent nodes, separated by commas, that an operator may decide to continue without (see
	// Decision).
	Missing string `json:"missing,omitempty"`
}

// State of a component.
type State string

// A Stopped component does not continue by itself: Detail says what the operator must decide.
const (
	Ready   State = "ready"
	Waiting State = "waiting" // for a peer or another component
	Working State = "working" // busy with a step
	Failed  State = "failed"  // the last step failed; tried again
	Stopped State = "stopped" // refuses to go on
)
