// Package jsonhash hashes values by their JSON.
package jsonhash

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Of hashes the JSON of a struct, whose fields have one order.
func Of(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
