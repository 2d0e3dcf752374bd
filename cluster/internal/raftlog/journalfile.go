package raftlog

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/internal/durable"
)

// A journal file is written in blocks of 4 KiB. The first is its header,
//
//	magic       8
//	format      4
//	id         16  random
//	sum        16
//
// which is written once, when the file is created. The second block is the mark: a frame
// without entries that records which generation is in bbolt. From the third block on there
// are the frames of the file's current generation, one for each write:
//
//	length      4  of the whole frame, without the padding of its last block
//	generation  8
//	sequence    8  of the write in its generation, from 0
//	entries     4  their number, then for each
//	  index       8
//	  term        8
//	  type        1
//	  has time    1
//	  seconds     8
//	  nanoseconds 4
//	  extensions  4  their length
//	  data        4  its length
//	  sum        16  of the entry, from logSum
//	  extensions  …
//	  data        …
//	sum        16
//
// Integers are big endian. The last sum is a truncated SHA-256. In the header it covers
// everything before it. In a frame it covers the id of the file and everything before it in
// the frame except extensions and data, which are covered by the sums of their entries;
// bbolt stores those too. Because of the id, neither bytes of another file nor bytes chosen
// by a client can be taken for a frame of this file. The sums detect damage only: anyone who
// can write to the disk can recompute them.
//
// Frames do not share blocks, so a write that is cut short damages only its own frame.
// Blocks after the last frame of a generation are left over from older generations, which
// have lower numbers.
const (
	journalMagic  = "CNCLJRNL"
	journalFormat = 1
	journalHead   = 8 + 4 + 16 + sumSize
	journalBlock  = 4 << 10
	markAt        = journalBlock
	framesAt      = 2 * journalBlock

	frameHead = 4 + 8 + 8 + 4
	minFrame  = frameHead + sumSize
	entryHead = 8 + 8 + 1 + 1 + 8 + 4 + 4 + 4 + sumSize
)

// journalID identifies a journal file.
type journalID [16]byte

// journalDisk is an open journal file.
type journalDisk interface {
	io.WriterAt
	io.Closer
	// Sync makes everything that was written durable.
	Sync() error
}

type dataFile struct{ *os.File }

// Sync implements journalDisk.
func (f dataFile) Sync() error { return syncData(f.File) }

// patientDisk waits for space when the disk is full and then repeats the write, which is
// safe even if the write was cut short.
type patientDisk struct {
	journalDisk
	noSpace auditlog.NoSpace
}

// WriteAt implements journalDisk.
func (d patientDisk) WriteAt(b []byte, at int64) (n int, err error) {
	err = d.noSpace.Retry(func() (err error) { n, err = d.journalDisk.WriteAt(b, at); return err })
	return n, err
}

// journalFile is one of a journal's two files.
type journalFile struct {
	disk       journalDisk
	id         journalID
	generation uint64 // the generation that it is filled with
	sequence   uint64 // of the next write
	end        int64  // offset of the next write
	logs       []sealedLog
}

// sealedLog is an entry with its checksum.
type sealedLog struct {
	*raft.Log
	sum [sumSize]byte
}

func sealLogs(logs []*raft.Log) []sealedLog {
	sealed := make([]sealedLog, len(logs))
	for i, l := range logs {
		sealed[i] = sealedLog{l, logSum(l, l.Extensions)}
	}
	return sealed
}

// makeJournalFile creates an empty journal file atomically.
func makeJournalFile(path string) error {
	b := append(make([]byte, 0, framesAt), journalMagic...)
	b = binary.BigEndian.AppendUint32(b, journalFormat)
	b = b[:len(b)+len(journalID{})]
	rand.Read(b[len(b)-len(journalID{}):])
	sum := sha256.Sum256(b)
	b = append(b, sum[:sumSize]...)
	return durable.Replace(path, b[:framesAt])
}

// openJournalFile reads a journal file with at most size bytes of frames. logs are the
// entries, all of one generation, that may not be in bbolt.
func openJournalFile(path string, size int64) (*journalFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, framesAt+size+1))
	j := &journalFile{disk: dataFile{f}}
	if err == nil && int64(len(b)) > framesAt+size {
		err = fmt.Errorf("%w: larger than a journal", ErrCorrupt)
	}
	if err == nil {
		err = j.read(b)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return j, nil
}

// read parses the content of a file.
//
// A write begins only after the one before it is on the disk. So a frame that cannot be
// read may belong to a write that a crash cut short, and nothing relied on it. If a later
// frame of the same generation can be read, however, the disk has lost data.
func (j *journalFile) read(b []byte) error {
	if len(b) < framesAt || string(b[:8]) != journalMagic {
		return fmt.Errorf("%w: no journal", ErrCorrupt)
	}
	if format := binary.BigEndian.Uint32(b[8:]); format != journalFormat {
		return fmt.Errorf("%w: format %d", ErrCorrupt, format)
	}
	sum := sha256.Sum256(b[:journalHead-sumSize])
	if [sumSize]byte(sum[:]) != [sumSize]byte(b[journalHead-sumSize:]) {
		return fmt.Errorf("%w: header checksum differs", ErrCorrupt)
	}
	j.id = journalID(b[12:])
	// If a crash cut the write of a mark short, its generation is complete in the file, and
	// its entries are stored once more.
	mark, _ := j.parse(b[markAt:framesAt])
	j.generation = mark.generation
	at := framesAt
	for at < len(b) { // a write cut short may have a complete frame without the padding of its last block
		f, ok := j.parse(b[at:])
		if !ok || f.sequence != j.sequence || j.sequence > 0 && f.generation != j.generation || f.generation <= mark.generation {
			break
		}
		j.logs = append(j.logs, f.logs...)
		j.generation, j.sequence = f.generation, j.sequence+1
		at += blocks(f.size)
	}
	for later := at + journalBlock; later < len(b); later += journalBlock {
		if f, ok := j.parse(b[later:]); ok && f.sequence > j.sequence && f.generation > mark.generation && f.generation >= j.generation {
			return fmt.Errorf("%w: write %d of generation %d, at %d, is damaged, and write %d is there", ErrCorrupt, j.sequence, f.generation, at, f.sequence)
		}
	}
	j.end = int64(at)
	return nil
}

// frame is a frame whose checksums are correct.
type frame struct {
	size                 int
	generation, sequence uint64
	logs                 []sealedLog // they share the frame's bytes
}

// parse checks and decodes the frame at the start of b.
func (j *journalFile) parse(b []byte) (_ frame, ok bool) {
	if len(b) < minFrame {
		return frame{}, false
	}
	var f frame
	f.size = int(binary.BigEndian.Uint32(b))
	if f.size < minFrame || f.size > len(b) {
		return frame{}, false
	}
	f.generation, f.sequence = binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint64(b[12:])
	h := j.hash()
	h.Write(b[:frameHead])
	rest, end := b[frameHead:f.size-sumSize], b[f.size-sumSize:f.size]
	for range binary.BigEndian.Uint32(b[20:]) {
		if len(rest) < entryHead {
			return frame{}, false
		}
		head, body := rest[:entryHead], rest[entryHead:]
		extensions, data := int64(binary.BigEndian.Uint32(head[30:])), int64(binary.BigEndian.Uint32(head[34:]))
		if extensions+data > int64(len(body)) {
			return frame{}, false
		}
		h.Write(head)
		l := sealedLog{
			&raft.Log{Index: binary.BigEndian.Uint64(head), Term: binary.BigEndian.Uint64(head[8:]), Type: raft.LogType(head[16])},
			[sumSize]byte(head[38:]),
		}
		if head[17] != 0 {
			l.AppendedAt = time.Unix(int64(binary.BigEndian.Uint64(head[18:])), int64(binary.BigEndian.Uint32(head[26:])))
		}
		if extensions > 0 {
			l.Extensions = body[:extensions:extensions]
		}
		if data > 0 {
			l.Data = body[extensions : extensions+data : extensions+data]
		}
		f.logs, rest = append(f.logs, l), body[extensions+data:]
	}
	if len(rest) > 0 || truncated(h) != [sumSize]byte(end) {
		return frame{}, false
	}
	for _, l := range f.logs {
		if logSum(l.Log, l.Extensions) != l.sum {
			return frame{}, false
		}
	}
	return f, true
}

// hash returns the hash for the checksum of a frame, with the file's id written to it.
func (j *journalFile) hash() hash.Hash {
	h := sha256.New()
	h.Write(j.id[:])
	return h
}

// frameSize returns the length of the frame of the entries, without the padding of its last
// block.
func frameSize(logs []sealedLog) int {
	n := minFrame
	for _, l := range logs {
		n += entryHead + len(l.Extensions) + len(l.Data)
	}
	return n
}

// blocks rounds n up to whole blocks.
func blocks(n int) int { return (n + journalBlock - 1) / journalBlock * journalBlock }

// appendFrame appends a frame of the entries, padded to whole blocks.
func (j *journalFile) appendFrame(b []byte, generation, sequence uint64, logs []sealedLog) []byte {
	size := frameSize(logs)
	h := j.hash()
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = binary.BigEndian.AppendUint64(b, generation)
	b = binary.BigEndian.AppendUint64(b, sequence)
	b = binary.BigEndian.AppendUint32(b, uint32(len(logs)))
	h.Write(b[len(b)-frameHead:])
	for _, l := range logs {
		b = binary.BigEndian.AppendUint64(b, l.Index)
		b = binary.BigEndian.AppendUint64(b, l.Term)
		b = append(b, byte(l.Type))
		if l.AppendedAt.IsZero() {
			b = append(b, make([]byte, 1+8+4)...)
		} else {
			b = append(b, 1)
			b = binary.BigEndian.AppendUint64(b, uint64(l.AppendedAt.Unix()))
			b = binary.BigEndian.AppendUint32(b, uint32(l.AppendedAt.Nanosecond()))
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
		b = append(b, l.sum[:]...)
		h.Write(b[len(b)-entryHead:])
		b = append(b, l.Extensions...)
		b = append(b, l.Data...)
	}
	sum := truncated(h)
	b = append(b, sum[:]...)
	return append(b, make([]byte, blocks(size)-size)...)
}

// write writes the next frame durably. It uses buf if it is large enough.
func (j *journalFile) write(buf []byte, logs []sealedLog) ([]byte, error) {
	buf = j.appendFrame(buf[:0], j.generation, j.sequence, logs)
	if err := j.put(buf, j.end); err != nil {
		return nil, err
	}
	j.end += int64(len(buf))
	j.sequence++
	return buf, nil
}

// mark records durably that bbolt has the generation.
func (j *journalFile) mark() error {
	return j.put(j.appendFrame(nil, j.generation, 0, nil), markAt)
}

func (j *journalFile) put(b []byte, at int64) error {
	if _, err := j.disk.WriteAt(b, at); err != nil {
		return err
	}
	return j.disk.Sync()
}

// begin starts a new generation in the file. Its previous generation must be marked.
func (j *journalFile) begin(generation uint64) {
	j.generation, j.sequence, j.end, j.logs = generation, 0, framesAt, nil
}
