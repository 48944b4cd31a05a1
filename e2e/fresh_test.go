package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// freshWithin is how late another backend may see what one has changed on the volume.
const freshWithin = 2 * time.Second

// filesAreFresh: what one backend writes, another one sees soon, even if it asks for the file all the time, as PHP does: a file that is
// written in place or replaced, one that was not there, and one that has gone.
func (b *bench) filesAreFresh(t *testing.T) {
	const dir = "/mnt/gluster/wordpress/wp-content/fresh"
	const changes = 12
	if _, err := b.in("backend1", "mkdir -p "+dir+" && echo start >"+dir+"/file"); err != nil {
		t.Fatal(err)
	}
	// The reader prints when it sees each state, the writer when it has made it; both use the host's clock.
	type result struct {
		out string
		err error
	}
	reader := make(chan result, 1)
	go func() {
		out, err := b.in("backend2", `cd `+dir+` || exit 1
until [ "$file" = end ]; do
	file=$(cat file) && [ -n "$file" ] && [ "$file" != "$was" ] && echo "$file $(date +%s%N)" && was=$file
	if [ -e new ]; then new=yes; else new=no; fi
	[ $new = "$had" ] || echo "new-$new $(date +%s%N)"
	had=$new
done`)
		reader <- result{out, err}
	}()
	written, err := b.in("backend1", `cd `+dir+` || exit 1
sleep 3 # the other reads meanwhile
for i in $(seq `+strconv.Itoa(changes)+`); do
	case $((i % 2)) in
	0) echo $i >file.new; mv file.new file;;
	1) echo $i >file;;
	esac
	echo "$i $(date +%s%N)"
	if [ -e new ]; then rm new; else echo >new; fi
	sleep 2.5
done
echo end >file`)
	if err != nil {
		t.Fatal(err)
	}
	var read result
	select {
	case read = <-reader:
	case <-time.After(time.Minute):
		t.Fatal("backend2 does not see the last change of a file")
	}
	if read.err != nil {
		t.Fatal(read.err)
	}
	seen := map[string][]int64{}
	for line := range strings.Lines(read.out) {
		state, at, _ := strings.Cut(strings.TrimSpace(line), " ")
		ns, _ := strconv.ParseInt(at, 10, 64)
		seen[state] = append(seen[state], ns)
	}
	for line := range strings.Lines(written) {
		state, at, _ := strings.Cut(strings.TrimSpace(line), " ")
		ns, _ := strconv.ParseInt(at, 10, 64)
		if len(seen[state]) != 1 {
			t.Errorf("backend2 has seen change %s of the file %d times", state, len(seen[state]))
		} else if late := time.Duration(seen[state][0] - ns); late > freshWithin {
			t.Errorf("backend2 has seen change %s of the file after %s", state, late)
		}
	}
	if len(seen["new-yes"]) != changes/2 || len(seen["new-no"]) != changes/2+1 { // it begins without
		t.Errorf("a file came and went %d times; backend2 has seen it come %d times, and go %d times", changes/2, len(seen["new-yes"]), len(seen["new-no"])-1)
	}
}
