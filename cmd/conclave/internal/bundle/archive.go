package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Archive is a bundle that is being written: a tar file, compressed by gzip, of one
// directory.
type Archive struct {
	name string
	at   time.Time
	gz   *gzip.Writer
	tar  *tar.Writer
	lost []string
}

// maxEntry bounds each file in a bundle.
const maxEntry = 32 << 20

// NewArchive begins an archive whose files are in a directory of that name.
func NewArchive(w io.Writer, name string, at time.Time) *Archive {
	gz := gzip.NewWriter(w)
	return &Archive{name: name, at: at, gz: gz, tar: tar.NewWriter(gz)}
}

// Add adds a file that write writes. If write fails, the archive says so in its list of
// what is missing, and what was written is not added.
func (a *Archive) Add(name string, write func(io.Writer) error) error {
	var b bytes.Buffer
	err := write(&b)
	if err == nil && b.Len() > maxEntry {
		err = fmt.Errorf("it is longer than %d bytes", maxEntry)
	}
	if err != nil {
		a.Miss(name, err.Error())
		return nil
	}
	return a.add(name, b.Bytes())
}

// AddJSON adds a value in JSON.
func (a *Archive) AddJSON(name string, v any) error {
	return a.Add(name, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	})
}

// Miss notes that something is not in the archive, and why.
func (a *Archive) Miss(name, why string) { a.lost = append(a.lost, name+": "+why) }

// Missing returns what is not in the archive, and why, for whoever makes it.
func (a *Archive) Missing() []string { return a.lost }

func (a *Archive) add(name string, data []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: a.name + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: a.at, Format: tar.FormatPAX,
	}); err != nil {
		return err
	}
	_, err := a.tar.Write(data)
	return err
}

// Close ends the archive. Reasons why something is missing pass the filter too.
func (a *Archive) Close(f *Filter) error {
	if len(a.lost) > 0 {
		var b bytes.Buffer
		for _, l := range a.lost {
			fmt.Fprintln(&b, f.Words(l))
		}
		if err := a.add("missing.txt", b.Bytes()); err != nil {
			return err
		}
	}
	if err := a.tar.Close(); err != nil {
		return err
	}
	return a.gz.Close()
}
