//go:build linux

package lab

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"gopkg.in/yaml.v3"

	"imagegen/cluster/facts"
)

// stubAgent plays both cloud-init and the agent: it sets the node's address, writes the seed's files, and serves the peer API. A balancer also takes the virtual address and serves its name as the site.
func stubAgent() error {
	const seed = "/var/lib/cloud/seed/nocloud/"
	var network struct {
		Config []struct {
			Name       string
			MACAddress string `yaml:"mac_address"`
			Subnets    []struct{ Address string }
		}
	}
	var user struct {
		WriteFiles []struct {
			Path, Permissions, Encoding, Content string
		} `yaml:"write_files"`
	}
	for name, into := range map[string]any{"network-config": &network, "user-data": &user} {
		data, err := os.ReadFile(seed + name)
		if err != nil {
			return err
		}
		if err := yaml.Unmarshal(data, into); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, f := range user.WriteFiles {
		content := []byte(f.Content)
		if f.Encoding == "b64" {
			content, _ = base64.StdEncoding.DecodeString(f.Content)
		}
		os.MkdirAll(filepath.Dir(f.Path), 0o755)
		if err := os.WriteFile(f.Path, content, 0o600); err != nil {
			return err
		}
	}
	card := network.Config[0]
	mac, err := os.ReadFile("/sys/class/net/" + card.Name + "/address")
	if err != nil || string(mac) != card.MACAddress+"\n" {
		return fmt.Errorf("the network card %s is %q (%v), want %s", card.Name, mac, err, card.MACAddress)
	}
	var report facts.NodeReport
	known, err := os.ReadFile(facts.FactsPath)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(known, &report); err != nil { // cluster, id and node have the same names in both
		return err
	}
	addresses := []string{card.Subnets[0].Address}
	if report.Node.Role == "balancer" {
		addresses = append(addresses, "192.168.10.39/24")
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, report.Node.Name) })
		go func() { log.Fatal(http.ListenAndServe(":80", nil)) }()
	}
	for _, a := range addresses {
		if out, err := exec.Command("ip", "address", "replace", a, "dev", card.Name).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if out, err := exec.Command("ip", "link", "set", card.Name, "up").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	report.Ready, report.Order = true, []string{"stub"}
	report.Components = map[string]facts.ComponentReport{"stub": {
		Kind: "service", Status: facts.Status{State: facts.Ready}, Since: time.Now(), Report: json.RawMessage(`{"much": "more"}`),
	}}
	pem, err := os.ReadFile(facts.PKIDir + "/ca.crt")
	if err != nil {
		return err
	}
	ca := x509.NewCertPool()
	ca.AppendCertsFromPEM(pem)
	api := http.NewServeMux()
	api.HandleFunc("GET "+facts.StatePath, func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(report) })
	server := http.Server{
		Addr: fmt.Sprint(":", facts.APIPort), Handler: api,
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca},
	}
	fmt.Println("imagegen: stub ready")
	return server.ListenAndServeTLS(facts.PKIDir+"/node.crt", facts.PKIDir+"/node.key")
}
