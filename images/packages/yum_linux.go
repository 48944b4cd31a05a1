package packages

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"imagegen/internal/ctxio"
	"imagegen/internal/filelock"
	"imagegen/internal/jsonhash"
	"imagegen/internal/sparse"
	"imagegen/internal/xz"
)

// Lacking returns the packages that are not in the store.
func (s Store) Lacking(packages []Pin) []Pin {
	return slices.DeleteFunc(slices.Clone(packages), func(p Pin) bool { return s.Has(p.SHA256) })
}

// rpmDownloads is the number of parallel downloads. It is small: archives of old releases are slow.
const rpmDownloads = 4

// FetchRPMs downloads packages from repositories into the store. If some are in no repository, it downloads nothing and
// returns those.
func (s Store) FetchRPMs(ctx context.Context, repos []Repo, missing []Pin, say func(string)) (gone []Pin, err error) {
	path := s.Path("rpms.lock")
	lock, err := filelock.Lock(ctx, path, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		say("wait for another imagegen, which is fetching packages")
		lock, err = filelock.Lock(ctx, path, syscall.LOCK_EX)
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if missing = s.Lacking(missing); len(missing) == 0 {
		return nil, nil
	}
	lists, err := os.MkdirTemp(string(s), "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(lists)
	where := map[Pin][]string{}
	var unread []error
	for _, r := range repos {
		if len(where) == len(missing) {
			break
		}
		say("read the package list of " + r.Name)
		f := newFetcher(lists, say)
		f.tries = 1 // try the other URLs before retrying
		err := findRPMs(ctx, f, r, missing, where)
		if err != nil {
			f.tries = fetchTries
			err = findRPMs(ctx, f, r, missing, where)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			unread = append(unread, fmt.Errorf("repository %s: %w", r.Name, err))
		}
	}
	for _, p := range missing {
		if where[p] == nil {
			gone = append(gone, p)
		}
	}
	switch {
	case gone != nil && unread != nil: // the repositories that could not be read may have them
		return nil, fmt.Errorf("%s not in the cache, and not in the repositories that could be read:\n%w", Listed(gone), errors.Join(unread...))
	case gone != nil:
		return gone, nil
	}
	say(fmt.Sprintf("fetch %d", len(missing)))
	f := newFetcher(string(s), func(string) {})
	errs := make([]error, len(missing))
	slots := make(chan struct{}, rpmDownloads)
	var wg sync.WaitGroup
	for i, p := range missing {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, url := range where[p] {
				_, err := f.fetch(ctx, url, p.SHA256)
				if err == nil {
					errs[i] = nil
					return
				}
				errs[i] = errors.Join(errs[i], err)
			}
			errs[i] = fmt.Errorf("fetch package %s: %w", p, errs[i])
			if errors.As(errs[i], new(sparse.WrongSum)) {
				errs[i] = fmt.Errorf("%w\nimagegen lock pins the current versions", errs[i])
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, errors.Join(errs...)
}

// findRPMs adds to where the addresses of the packages that a repository has. It reads the package list from the first
// URL that works; that URL and those after it are the addresses.
func findRPMs(ctx context.Context, f *fetcher, r Repo, missing []Pin, where map[Pin][]string) error {
	var failed []error
	for i, url := range r.URLs {
		files, err := readRepository(ctx, f, expandURL(url))
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for _, p := range missing {
			href := files.find(p)
			if href == "" {
				continue
			}
			for _, mirror := range r.URLs[i:] {
				where[p] = append(where[p], expandURL(mirror)+href)
			}
		}
		return nil
	}
	return errors.Join(failed...)
}

// expandURL replaces yum's variables in a repository's URL and makes it end in a slash.
func expandURL(url string) string {
	return strings.TrimSuffix(strings.NewReplacer("$basearch", "x86_64", "$arch", "x86_64", "$releasever", "7").Replace(url), "/") + "/"
}

// rpmFiles maps packages to paths in a repository.
type rpmFiles struct {
	sums   map[string]string // by SHA-256
	others map[string]string // by name, version and architecture, for entries without SHA-256
}

func (r rpmFiles) find(p Pin) string {
	if href := r.sums[p.SHA256]; href != "" {
		return href
	}
	return r.others[p.Name+" "+strings.TrimPrefix(p.Version, "0:")+" "+p.Architecture]
}

// sumXML is a checksum in a repository's files.
type sumXML struct {
	Type string `xml:"type,attr"`
	Sum  string `xml:",chardata"`
}

type hrefXML struct {
	Path string `xml:"href,attr"`
}

// readRepository reads a repository's package list.
func readRepository(ctx context.Context, f *fetcher, url string) (rpmFiles, error) {
	index := filepath.Join(f.dir, jsonhash.Of(url))
	if err := f.download(ctx, url+"repodata/repomd.xml", index); err != nil {
		return rpmFiles{}, fmt.Errorf("%srepodata/repomd.xml: %w", url, err)
	}
	data, err := os.ReadFile(index)
	if err != nil {
		return rpmFiles{}, err
	}
	var md struct {
		Data []struct {
			Type     string  `xml:"type,attr"`
			Checksum sumXML  `xml:"checksum"`
			Location hrefXML `xml:"location"`
		} `xml:"data"`
	}
	if err := xml.Unmarshal(data, &md); err != nil {
		return rpmFiles{}, fmt.Errorf("%srepodata/repomd.xml: %w", url, err)
	}
	for _, d := range md.Data {
		if d.Type != "primary" {
			continue
		}
		at, path := url+d.Location.Path, index+".primary"
		if d.Checksum.Type == "sha256" {
			path, err = f.fetch(ctx, at, strings.TrimSpace(d.Checksum.Sum))
		} else if err = f.download(ctx, at, path); err != nil {
			err = fmt.Errorf("%s: %w", at, err)
		}
		if err != nil {
			return rpmFiles{}, err
		}
		file, err := os.Open(path)
		if err != nil {
			return rpmFiles{}, err
		}
		defer file.Close()
		var files rpmFiles
		err = unwrap(ctx, file, func(r io.Reader) error {
			files, err = readPrimary(r)
			return err
		})
		if err != nil {
			return rpmFiles{}, fmt.Errorf("%s: %w", at, err)
		}
		return files, nil
	}
	return rpmFiles{}, fmt.Errorf("%srepodata/repomd.xml names no package list", url)
}

// unwrap decompresses a package list if needed.
func unwrap(ctx context.Context, file io.Reader, use func(io.Reader) error) error {
	r := bufio.NewReaderSize(ctxio.Reader(ctx, file), 1<<20)
	head, _ := r.Peek(6) // a file too short for that is no XML either
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		return errors.Join(use(z), z.Close())
	case bytes.HasPrefix(head, []byte("BZh")):
		return use(bzip2.NewReader(r))
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return xz.Read(ctx, r, use)
	}
	return use(r)
}

// readPrimary parses a package list.
func readPrimary(r io.Reader) (rpmFiles, error) {
	files := rpmFiles{map[string]string{}, map[string]string{}}
	for d := xml.NewDecoder(r); ; {
		token, err := d.Token()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return files, err
		}
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local != "package" {
			continue
		}
		var p struct {
			Name    string `xml:"name"`
			Arch    string `xml:"arch"`
			Version struct {
				Epoch   string `xml:"epoch,attr"`
				Version string `xml:"ver,attr"`
				Release string `xml:"rel,attr"`
			} `xml:"version"`
			Checksum sumXML  `xml:"checksum"`
			Location hrefXML `xml:"location"`
		}
		if err := d.DecodeElement(&p, &start); err != nil {
			return files, err
		}
		if sum := strings.TrimSpace(p.Checksum.Sum); p.Checksum.Type == "sha256" {
			files.sums[sum] = p.Location.Path
			continue
		}
		version := strings.TrimPrefix(p.Version.Epoch+":"+p.Version.Version+"-"+p.Version.Release, "0:")
		files.others[p.Name+" "+strings.TrimPrefix(version, ":")+" "+p.Arch] = p.Location.Path
	}
}

// TakeRPMs copies pinned packages to a folder.
func (s Store) TakeRPMs(ctx context.Context, dir string, packages []Pin) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range packages {
		version := p.Version[strings.Index(p.Version, ":")+1:] // without the epoch
		path := filepath.Join(dir, p.Name+"-"+version+"."+p.Architecture+".rpm")
		if err := s.Take(ctx, p.SHA256, path, "package "+p.String()); err != nil {
			return err
		}
	}
	return nil
}
