package agent

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxStatistics is the largest page of statistics that is read, in bytes.
const maxStatistics = 1 << 20

// observeProxies notes where a load balancer sends what arrives, if it is one. What it does not say is not known.
func (s *service) observeProxies(ctx context.Context) {
	if s.params.Statistics == "" || s.seen.Unit.Active != "active" || s.seen.Fault != "" {
		s.seen.Sends = ""
		return
	}
	if time.Since(s.proxied) < calmCheck {
		return
	}
	s.seen.Sends, s.proxied = "", time.Now()
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.params.Statistics, nil)
	if err != nil {
		return
	}
	resp, err := checkClient.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		s.seen.Sends = sendsTo(io.LimitReader(resp.Body, maxStatistics))
	}
}

// sendsTo reads HAProxy's statistics as CSV (HAProxy Management Guide, 9.1) and says which servers each proxy uses: those that are
// up, or else the first backup that is. What cannot be read says nothing.
func sendsTo(page io.Reader) string {
	rows, err := csv.NewReader(page).ReadAll()
	if err != nil || len(rows) == 0 {
		return ""
	}
	column := func(name string) int { return slices.Index(rows[0], name) }
	proxy, server, status, check, active, kind := column("# pxname"), column("svname"), column("status"), column("check_status"), column("act"), column("type")
	if min(proxy, server, status, check, active, kind) < 0 {
		return ""
	}
	const ofServer = "2"
	var order []string
	first, backup := map[string][]string{}, map[string][]string{}
	for _, row := range rows[1:] {
		if row[kind] != ofServer {
			continue
		}
		if row[check] == "INI" { // taken for up until it has been checked
			return ""
		}
		if !slices.Contains(order, row[proxy]) {
			order = append(order, row[proxy])
		}
		// "UP 1/2" is one that is about to go down, "no check" one that is not asked.
		if !strings.HasPrefix(row[status], "UP") && row[status] != "no check" {
			continue
		}
		if row[active] == "1" {
			first[row[proxy]] = append(first[row[proxy]], row[server])
		} else {
			backup[row[proxy]] = append(backup[row[proxy]], row[server])
		}
	}
	var all []string
	for _, name := range order {
		to := first[name]
		if len(to) == 0 {
			to = backup[name][:min(1, len(backup[name]))]
		}
		if len(to) == 0 {
			to = []string{"no server"}
		}
		all = append(all, fmt.Sprintf("%s to %s", name, strings.Join(to, " and ")))
	}
	if all == nil {
		return ""
	}
	return "sending " + strings.Join(all, ", ")
}

// is says where a load balancer sends what arrives.
func (s serviceSeen) is() string { return s.Sends }
