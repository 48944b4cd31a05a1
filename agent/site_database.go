package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// settings are what the spec says of the site itself. They can also be changed in WordPress, so what counts is a change of the spec: the
// database knows what the site has taken from it last.
func (s *site) settings() string {
	all := map[string]string{"title": s.params.Title, "url": s.params.URL, "admin_email": s.params.AdminEmail, "timezone": s.params.Timezone}
	text, _ := json.Marshal(all) // sorted, and strings can be marshalled
	return string(text)
}

// askDatabase looks whether the site is installed, and for which WordPress.
func (s *site) askDatabase(ctx context.Context) phpAnswer {
	if !s.greeted {
		if err := greet(ctx, s.params.Database); err != nil {
			return phpAnswer{State: dbSilent, Detail: err.Error()}
		}
		s.greeted = true
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	a, err := s.php(ctx, "look")
	switch {
	case err != nil && ctx.Err() == context.DeadlineExceeded:
		return phpAnswer{State: dbError, Detail: fmt.Sprintf("PHP, which asks it, has not ended within %v", lookLimit)}
	case err != nil:
		return phpAnswer{State: dbError, Detail: err.Error()}
	}
	s.greeted = a.State != dbError
	return a
}

// greet waits for the greeting of a MySQL server. A balancer accepts connections even if there is no server behind it.
func greet(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return errors.New(netFault(err))
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	head := make([]byte, 5) // length (3), number (1), protocol version or 0xff
	switch _, err := io.ReadFull(conn, head); {
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return errors.New("it closes the connection (no server behind the balancer is ready)")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it takes the connection, but says nothing for %v", checkLimit)
	case err != nil:
		return errors.New(netFault(err))
	case head[4] == 10:
		return nil
	case head[4] != 0xff:
		return errors.New("what answers there is no MySQL server")
	}
	size := int(head[0]) | int(head[1])<<8
	text := make([]byte, max(0, min(size-1, 512)))
	n, _ := io.ReadFull(conn, text) // as much as there is
	return fmt.Errorf("it refuses: %s", bytes.TrimSpace(text[min(2, n):n]))
}

// php runs site.php as the owner of the site's files: plug-ins and the drop-in that it loads from the volume are that user's.
// Script and parameters are passed on standard input, since other users can read command lines.
func (s *site) php(ctx context.Context, do string) (phpAnswer, error) {
	var a phpAnswer
	uid, gid, err := lookupOwner(s.params.Owner)
	if err != nil {
		return a, err
	}
	password := s.node.Secrets[s.params.AdminSecret]
	if password == "" {
		return a, fmt.Errorf("the seed has no secret %q", s.params.AdminSecret)
	}
	params, err := json.Marshal(map[string]string{
		"do": do, "core": s.params.Core, "node": s.node.Facts.Node.Name, "cluster_id": s.node.Facts.ClusterID, "title": s.params.Title, "url": s.params.URL, "timezone": s.params.Timezone, "settings": s.settings(),
		"admin_user": s.params.AdminUser, "admin_email": s.params.AdminEmail, "admin_password": password,
	})
	if err != nil {
		return a, err
	}
	script := fmt.Appendf(nil, "<?php $params = json_decode(base64_decode('%s'), true); ?>", base64.StdEncoding.EncodeToString(params))
	cmd := exec.CommandContext(ctx, s.params.PHP[0], s.params.PHP[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	cmd.Stdin = bytes.NewReader(append(script, sitePHP...))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return readAnswer(out, errs.Bytes(), err)
}

// readAnswer finds the answer in what PHP printed.
func readAnswer(out, errs []byte, err error) (phpAnswer, error) {
	var a phpAnswer
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if json.Unmarshal(lines[len(lines)-1], &a) == nil && a.State != "" {
		return a, nil
	}
	said := bytes.TrimSpace(errs)
	if len(said) == 0 {
		said = bytes.TrimSpace(out)
	}
	if err == nil {
		err = errors.New("no answer")
	}
	return a, fmt.Errorf("php: %w: %s", err, said)
}

// tables installs or upgrades the database, or changes the site's settings in it.
func (s *site) tables(ctx context.Context, do siteDo, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := s.php(ctx, string(do))
	if err != nil {
		return fmt.Errorf("%s the site: %w", do, err)
	}
	if a.State != dbInstalled && a.State != dbForeign {
		return fmt.Errorf("%s the site: %s", do, a.Detail)
	}
	s.note(a)
	return nil
}
