package sparse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"os"
)

// A raw disk is mostly holes: 200 GiB of which 0.7 hold data is common. SHA-256 cannot skip zeros, so hashing the whole
// disk takes minutes. Its digest is therefore of what it holds, and costs what its data costs. It does not depend on
// where a copy of the file has holes.

// digestBlock is the unit of a digest of data.
const digestBlock = 4096

// Digest returns the digest of a disk's content, called sparse_sha256 in manifests: the SHA-256 of, for each block of
// 4096 bytes that is not all zeros, in order, the block's number (8 bytes, big-endian) and its bytes, and at last the
// size of the disk in bytes (8 bytes, big-endian).
func Digest(ctx context.Context, path string) (string, error) {
	h := sha256.New()
	var number [8]byte
	var zeros [digestBlock]byte
	size, err := eachData(ctx, path, func(at int64, p []byte) error {
		for len(p) > 0 {
			block := p[:min(len(p), digestBlock)]
			p = p[len(block):]
			if !bytes.Equal(block, zeros[:len(block)]) {
				binary.BigEndian.PutUint64(number[:], uint64(at/digestBlock))
				h.Write(number[:])
				h.Write(block)
			}
			at += int64(len(block))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	binary.BigEndian.PutUint64(number[:], uint64(size))
	h.Write(number[:])
	return hex.EncodeToString(h.Sum(nil)), nil
}

// SHA256 returns the SHA-256 of a file. The holes of a sparse one are hashed without being read.
func SHA256(ctx context.Context, path string) (string, error) {
	h := sha256.New()
	pos := int64(0)
	size, err := eachData(ctx, path, func(at int64, p []byte) error {
		if err := hashZeros(ctx, h, at-pos); err != nil {
			return err
		}
		h.Write(p)
		pos = at + int64(len(p))
		return nil
	})
	if err != nil {
		return "", err
	}
	if err := hashZeros(ctx, h, size-pos); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashZeros hashes n zeros.
func hashZeros(ctx context.Context, h hash.Hash, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := zeros[:min(n, int64(len(zeros)))]
		h.Write(p)
		n -= int64(len(p))
	}
	return nil
}

// eachData calls do for pieces of a file, in order, that begin at a multiple of digestBlock and end at one or at the end
// of the file. What lies between them is holes. It returns the file's size.
func eachData(ctx context.Context, path string, do func(at int64, p []byte) error) (size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a file", path)
	}
	size = info.Size()
	buf := make([]byte, 1<<20)
	next := int64(0) // extents may begin in the block in which the one before them ended
	err = Each(f, func(start, end int64) error {
		end = min((end+digestBlock-1)/digestBlock*digestBlock, size)
		for at := max(next, start/digestBlock*digestBlock); at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(end-at, int64(len(buf)))]
			if n, err := f.ReadAt(p, at); n < len(p) {
				return fmt.Errorf("read %s: %w", path, err)
			}
			if err := do(at, p); err != nil {
				return err
			}
			at += int64(len(p))
			next = at
		}
		return nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return size, err
}
