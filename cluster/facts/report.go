package facts

import (
	"encoding/json"
	"time"
)

// StatePath is where an agent's peer API answers with a NodeReport, as JSON.
const StatePath = "/v1/state"

// DecidePath is where an agent takes an operator's Decision: POST, as JSON, with the operator's certificate.
const DecidePath = "/v1/decide"

// LogsPath is where an agent answers the operator with the node's journal, as text: GET, with ?since=DURATION (how long ago, such as
// 15m) and ?follow=1.
const LogsPath = "/v1/logs"

// EventsPath is where an agent answers the operator with Events, as JSON: GET, with ?since=DURATION.
const EventsPath = "/v1/events"

// Events is what an agent remembers of what has happened on its node.
type Events struct {
	Node   string  `json:"node"`
	Events []Event `json:"events"` // the oldest first
}

// Event is one thing that happened.
type Event struct {
	Time      time.Time `json:"time"`                // by the node's clock
	Component string    `json:"component,omitempty"` // empty: it concerns the node
	Text      string    `json:"text"`
}

// OperatorName is the common name of the operator's certificate. No node may have it.
const OperatorName = "operator"

// Decision lets a component go on without nodes on whose word it waits. What only those nodes have may then be lost.
type Decision struct {
	Component string   `json:"component"`
	Without   []string `json:"without"` // names of nodes
}

// NodeReport is what an agent tells its peers and the operator about its node.
type NodeReport struct {
	Cluster    string                     `json:"cluster"`
	ClusterID  string                     `json:"cluster_id"`
	Node       Peer                       `json:"node"`
	Ready      bool                       `json:"ready"` // every component is
	Components map[string]ComponentReport `json:"components"`
	Order      []string                   `json:"order"` // of the components, as in the facts
	Heard      []string                   `json:"heard"` // peers that answered this node lately
	// Holds lists the virtual addresses that the node has.
	Holds []string `json:"holds,omitempty"`
	Made
}

// Made is what a node was made from.
type Made struct {
	// Seed is the digest of the seed that the node runs; empty: not known.
	Seed string `json:"seed,omitempty"`
	// Machine differs between any two root disks. A node that reports another one than before was made anew.
	Machine string `json:"machine,omitempty"`
}

// ComponentReport is what one component of a node publishes.
type ComponentReport struct {
	Kind   string          `json:"kind"`
	Status Status          `json:"status"`
	Is     string          `json:"is,omitempty"`     // what it is among its like: master, 3 of 3 members, …
	Since  time.Time       `json:"since"`            // when State last changed, by the node's clock; for people
	Report json.RawMessage `json:"report,omitempty"` // what the component observed, for its like on the peers
}

// Status is where a component stands.
type Status struct {
	State State `json:"state"`
	// Detail says what is waited for, done, or wrong, in a few words a person understands.
	Detail string `json:"detail,omitempty"`
	// Missing lists the silent nodes without whose word it does not go on, separated by commas, where an operator may
	// decide that it shall (see Decision).
	Missing string `json:"missing,omitempty"`
}

// State of a component.
type State string

// The states. A component that is Stopped will not go on by itself: Detail says what the operator must decide.
const (
	Ready   State = "ready"
	Waiting State = "waiting" // for a peer or another component
	Working State = "working" // busy with a step
	Failed  State = "failed"  // the last step failed; tried again
	Stopped State = "stopped" // refuses to go on
)
