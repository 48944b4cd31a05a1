package assemble

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imagegen/cluster"
)

// Texts as MariaDB 10.11 with Galera 26.4 writes them.
const (
	historyUUID  = "5f1e1d1c-e94a-11f0-a1b2-4b8d2c3e5f60"
	cleanState   = "# GALERA saved state\nversion: 2.1\nuuid:    " + historyUUID + "\nseqno:   71\nsafe_to_bootstrap: 0\n"
	crashedState = "# GALERA saved state\nversion: 2.1\nuuid:    " + historyUUID + "\nseqno:   -1\nsafe_to_bootstrap: 0\n"
	joinerState  = "# GALERA saved state\nversion: 2.1\nuuid:    00000000-0000-0000-0000-000000000000\nseqno:   -1\nsafe_to_bootstrap: 0\n"
)

func TestGrastate(t *testing.T) {
	for text, want := range map[string]position{
		cleanState:                        {historyUUID, 71},
		crashedState:                      {historyUUID, -1},
		joinerState:                       {nullUUID, -1},
		"":                                {"", -1},
		"uuid: not-a-uuid\nseqno: many\n": {"", -1},
		strings.Repeat("\x00", 4096):      {"", -1}, // what some file systems leave after a crash
		cleanState[:strings.Index(cleanState, "seqno")]: {historyUUID, -1},
	} {
		if got := parseGrastate([]byte(text)); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	for at, want := range map[position]bool{{historyUUID, 71}: true, {historyUUID, 0}: true, {historyUUID, -1}: false, {nullUUID, 5}: false, {"", 5}: false} {
		if at.valid() != want {
			t.Errorf("%+v counts: %v", at, !want)
		}
	}
	if got := string(safeToBootstrap([]byte(cleanState))); got != strings.Replace(cleanState, "bootstrap: 0", "bootstrap: 1", 1) {
		t.Errorf("made safe to bootstrap:\n%s", got)
	}
}

func FuzzGrastate(f *testing.F) {
	for _, s := range []string{cleanState, crashedState, joinerState, ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if at := parseGrastate(data); at.valid() && !strings.Contains(string(data), at.UUID) {
			t.Errorf("%+v is not in %q", at, data)
		}
	})
}

func TestRecovery(t *testing.T) {
	const lines = "2026-11-23 17:53:11 0 [Note] InnoDB: 10.11.11 started; log sequence number 46846; transaction id 14\n" +
		"2026-11-23 17:53:11 0 [Note] WSREP: Recovered position: "
	for text, want := range map[string]position{
		lines + historyUUID + ":71\n":                               {historyUUID, 71},
		lines + historyUUID + ":71,0-1-2\n":                         {historyUUID, 71}, // with a GTID
		lines + nullUUID + ":-1\n":                                  {nullUUID, -1},
		lines + historyUUID + ":3\n" + lines + historyUUID + ":4\n": {historyUUID, 4},
	} {
		if got, err := parseRecovery([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", lines, lines + historyUUID, lines + historyUUID + ":99999999999999999999\n"} {
		if got, err := parseRecovery([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzRecovery(f *testing.F) {
	f.Add([]byte("WSREP: Recovered position: " + historyUUID + ":71\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if at, err := parseRecovery(data); err == nil && !strings.Contains(string(data), at.UUID) {
			t.Errorf("%+v is not in %q", at, data)
		}
	})
}

func TestGaleraStatus(t *testing.T) {
	rows := func(status, state, ready string) string {
		return "wsrep_local_state\t" + state + "\nwsrep_last_committed\t71\nwsrep_cluster_size\t3\nwsrep_cluster_state_uuid\t" + historyUUID +
			"\nwsrep_cluster_status\t" + status + "\nwsrep_ready\t" + ready + "\n"
	}
	at := position{historyUUID, 71}
	for text, want := range map[string]galeraReport{
		rows("Primary", "4", "ON") + "marker\tc1\n": {State: galeraServing, Position: at, Size: 3, Cluster: "c1"},
		rows("Primary", "2", "ON"):                  {State: galeraServing, Position: at, Size: 3}, // gives a state transfer
		rows("Primary", "1", "OFF"):                 {State: galeraJoining, Position: at, Size: 3},
		rows("Primary", "4", "OFF"):                 {State: galeraJoining, Position: at, Size: 3},
		rows("non-Primary", "4", "OFF"):             {State: galeraApart, Position: at, Size: 3},
		"":                                          {State: galeraApart, Position: position{"", -1}},
	} {
		if got := parseStatus([]byte(text)); got.State != want.State || got.Position != want.Position || got.Size != want.Size || got.Cluster != want.Cluster {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// What a stopped server's data folder is taken for.
func TestGaleraFolder(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		known *position
		want  galeraState
	}{
		"blank":                                 {nil, nil, galeraEmpty},
		"died before making a database":         {map[string]string{foundingName: "c1"}, nil, galeraEmpty},
		"died while marking":                    {map[string]string{foundingName + ".tmp1": ""}, nil, galeraEmpty},
		"died while making a database":          {map[string]string{foundingName: "c1", "ibdata1": "x"}, nil, galeraUnread},
		"the same, found to hold nothing":       {map[string]string{foundingName: "c1", "ibdata1": "x"}, &position{nullUUID, -1}, galeraEmpty},
		"stopped":                               {map[string]string{"ibdata1": "x", "grastate.dat": cleanState}, nil, galeraHolds},
		"lost power":                            {map[string]string{"ibdata1": "x", "grastate.dat": crashedState}, nil, galeraUnread},
		"lost power, recovered":                 {map[string]string{"ibdata1": "x", "grastate.dat": crashedState}, &position{historyUUID, 71}, galeraHolds},
		"lost power in a state transfer":        {map[string]string{"ibdata1": "x", "grastate.dat": joinerState}, nil, galeraUnread},
		"the same, found to hold nothing whole": {map[string]string{"ibdata1": "x", "grastate.dat": joinerState}, &position{nullUUID, -1}, galeraUnusable},
	} {
		dir := t.TempDir()
		for f, text := range c.files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		g := &galera{params: &cluster.GaleraParams{DataDir: dir}, known: c.known}
		if got, err := g.read(); err != nil || got.State != c.want {
			t.Errorf("%s: %s, %v; want %s", name, got.State, err, c.want)
		}
	}
}
