package lab
import ("testing";"time";"os";"fmt")
func TestDevImage(t *testing.T) {
	i := testImage(t)
	if out := os.Getenv("DEV_IMAGE"); out != "" { os.Rename(i, out) }
}
func TestDevOne(t *testing.T) {
	b := newBench(t, "labdev", os.Getenv("DEV_IMAGE"))
	s := time.Now()
	if err := b.Up(t.Context(), []string{"store1"}, b.site); err != nil { t.Fatal(err) }
	t.Log("up", time.Since(s))
	eventually(t, "r", func() error { if st := b.status(t)["store1"]; st.State != "ready" { return fmt.Errorf("%+v", st) }; return nil })
	t.Log("ready", time.Since(s))
	for _, c := range machineChecks {
		if out, ok := b.in(t, "store1", c.script); !ok { t.Errorf("%s: %s", c.what, out) }
	}
	out, _ := b.in(t, "store1", os.Getenv("DEV_CMD"))
	t.Log(out)
	fmt.Printf("%+v\n", b.status(t)["store1"])
	k := time.Now()
	if err := b.Kill(t.Context(), "store1"); err != nil { t.Fatal(err) }
	t.Log("kill", time.Since(k))
	k = time.Now()
	if err := b.Down(t.Context()); err != nil { t.Fatal(err) }
	t.Log("down", time.Since(k))
	b.nothingLeft(t)
}
