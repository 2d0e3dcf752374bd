package shamir

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"pgregory.net/rapid"
)

func newSet(threshold, count int) SetInfo {
	s := SetInfo{Threshold: threshold, Count: count}
	_, _ = rand.Read(s.Cluster[:])
	_, _ = rand.Read(s.Set[:])
	return s
}

func deal(t testing.TB, set SetInfo) (secret []byte, shares []Share) {
	t.Helper()
	secret = make([]byte, SecretSize)
	_, _ = rand.Read(secret)
	shares, err := Split(rand.Reader, secret, set)
	if err != nil {
		t.Fatal(err)
	}
	return secret, shares
}

func TestEverySubset(t *testing.T) {
	for _, p := range []struct{ t, n, subsets int }{{1, 1, 1}, {1, 3, 3}, {2, 3, 3}, {3, 5, 10}, {5, 9, 126}} {
		t.Run(fmt.Sprintf("%d of %d", p.t, p.n), func(t *testing.T) {
			secret, shares := deal(t, newSet(p.t, p.n))
			opened := 0
			for k := p.t; k <= p.n; k++ {
				_ = subsets(p.n, k, func(pick []int) error {
					var s []Share
					for _, i := range pick {
						s = append(s, shares[i])
					}
					got, err := Combine(s)
					if err != nil || !bytes.Equal(got, secret) {
						t.Errorf("shares %v did not open: %v", pick, err)
					}
					if k == p.t {
						opened++
					}
					return nil
				})
			}
			if opened != p.subsets {
				t.Errorf("tried %d subsets, want %d", opened, p.subsets)
			}
			if p.t == 1 {
				return
			}
			_ = subsets(p.n, p.t-1, func(pick []int) error {
				var s []Share
				for _, i := range pick {
					s = append(s, shares[i])
				}
				if _, err := Combine(s); !errors.Is(err, ErrTooFew) {
					t.Errorf("shares %v: err = %v, want ErrTooFew", pick, err)
				}
				// And what one would compute by lying about the threshold.
				var forged [SecretSize]byte
				interpolate(&forged, 0, s)
				if bytes.Equal(forged[:], secret) {
					t.Errorf("shares %v opened, one too few", pick)
				}
				return nil
			})
		})
	}
}

// For one byte and every t-1 shares, each of the 256 secrets has exactly one
// value of a further share that leads to it: the shares say nothing.
func TestPerfectSecrecy(t *testing.T) {
	for _, p := range []struct{ t, n int }{{2, 3}, {3, 5}, {5, 9}} {
		_, shares := deal(t, newSet(p.t, p.n))
		_ = subsets(p.n, p.t-1, func(pick []int) error {
			var s []Share
			in := map[int]bool{}
			for _, i := range pick {
				s = append(s, shares[i])
				in[i] = true
			}
			next := 0
			for in[next] {
				next++
			}
			var seen [256]bool
			for v := range 256 {
				guess := shares[next].clone()
				guess.cell.v.b[0] = byte(v)
				var out [SecretSize]byte
				interpolate(&out, 0, append(s[:len(s):len(s)], guess))
				seen[out[0]] = true
			}
			for v, ok := range seen {
				if !ok {
					t.Fatalf("%d of %d: shares %v exclude the secret %#x", p.t, p.n, pick, v)
				}
			}
			return nil
		})
	}
}

type vector struct {
	Name      string
	Threshold int
	Count     int
	Secret    string
	Random    string
	Cluster   string
	Set       string
	Shares    []struct {
		Index      int
		Text       string
		Commitment string
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The vectors were made by a separate implementation, and are never changed.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 6 {
		t.Fatalf("%d vectors, want 6", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			secret, random := unhex(t, v.Secret), unhex(t, v.Random)
			set := SetInfo{[16]byte(unhex(t, v.Cluster)), [16]byte(unhex(t, v.Set)), v.Threshold, v.Count}
			shares, err := Split(bytes.NewReader(random), secret, set)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range v.Shares {
				s := shares[want.Index-1]
				if got := textOf(s); got != want.Text {
					t.Errorf("share %d:\ngot  %s\nwant %s", want.Index, got, want.Text)
				}
				if got := Commitment(s); hex.EncodeToString(got[:]) != want.Commitment {
					t.Errorf("share %d: commitment %x, want %s", want.Index, got, want.Commitment)
				}
				// The reference of this test: the polynomial, power by power.
				for j := range SecretSize {
					y, power := secret[j], byte(1)
					for k := range v.Threshold - 1 {
						power = slowMul(power, byte(want.Index))
						y ^= slowMul(random[k*SecretSize+j], power)
					}
					if y != s.cell.v.b[j] {
						t.Fatalf("share %d byte %d = %#x, want %#x", want.Index, j, s.cell.v.b[j], y)
					}
				}
				parsed, err := ParseShare([]byte(want.Text))
				if err != nil {
					t.Fatal(err)
				}
				if parsed.set != set || parsed.Index() != want.Index || parsed.cell.v.b != s.cell.v.b {
					t.Errorf("share %d parsed to something else", want.Index)
				}
			}
			got, err := Combine(shares)
			if err != nil || !bytes.Equal(got, secret) {
				t.Errorf("Combine: %v, secret equal: %v", err, bytes.Equal(got, secret))
			}
		})
	}
}

func TestSplitRefuses(t *testing.T) {
	good := bytes.Repeat([]byte{7}, SecretSize)
	for _, tc := range []struct {
		name   string
		secret []byte
		t, n   int
	}{
		{"threshold 0", good, 0, 3},
		{"negative threshold", good, -1, 3},
		{"threshold above count", good, 4, 3},
		{"256 shares", good, 2, 256},
		{"no shares", good, 0, 0},
		{"no secret", nil, 2, 3},
		{"short secret", good[:31], 2, 3},
		{"long secret", append(good[:32:32], 1), 2, 3},
		{"zero secret", make([]byte, SecretSize), 2, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Split(rand.Reader, tc.secret, newSet(tc.t, tc.n)); !errors.Is(err, ErrParameters) {
				t.Errorf("err = %v, want ErrParameters", err)
			}
		})
	}
	if _, err := Split(bytes.NewReader(make([]byte, 63)), good, newSet(3, 5)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short randomness: err = %v, want io.ErrUnexpectedEOF", err)
	}
}

func TestCombineRefuses(t *testing.T) {
	set := newSet(3, 5)
	_, shares := deal(t, set)
	otherSet := set
	otherSet.Set[0] ^= 1
	_, foreign := deal(t, otherSet)
	otherThreshold := set
	otherThreshold.Threshold = 2
	_, lower := deal(t, otherThreshold)
	_, cluster := deal(t, newSet(3, 5))
	wiped := shares[4].clone()
	wiped.Wipe()
	outside := shares[4].clone()
	outside.index = 6
	zero := shares[4].clone()
	zero.index = 0
	damaged := shares[3].clone()
	damaged.cell.v.b[31] ^= 1
	for _, tc := range []struct {
		name   string
		shares []Share
		want   error
		index  int
	}{
		{"none", nil, ErrTooFew, 0},
		{"too few", shares[:2], ErrTooFew, 0},
		{"repeated", []Share{shares[0], shares[1], shares[0]}, ErrRepeated, 1},
		{"other set", []Share{shares[0], shares[1], foreign[2]}, ErrForeignSet, 3},
		{"other threshold", []Share{lower[0], shares[1], shares[2]}, ErrForeignSet, 2},
		{"other cluster", []Share{shares[0], shares[1], cluster[3]}, ErrWrongCluster, 4},
		{"wiped", []Share{shares[0], shares[1], wiped}, ErrWiped, 5},
		{"zero Share", []Share{{}}, ErrParameters, 0},
		{"zero Share among good", []Share{shares[0], {}}, ErrWiped, 0},
		{"index above count", []Share{shares[0], shares[1], outside}, ErrWrongShare, 6},
		{"index zero", []Share{shares[0], shares[1], zero}, ErrWrongShare, 0},
		{"damaged beyond threshold", []Share{shares[0], shares[1], shares[2], damaged}, ErrInconsistent, 0},
		{"damaged within threshold", []Share{damaged, shares[1], shares[2], shares[4]}, ErrInconsistent, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Combine(tc.shares)
			if !errors.Is(err, tc.want) || got != nil {
				t.Fatalf("got %v, err = %v, want %v", got, err, tc.want)
			}
			var se *ShareError
			if errors.As(err, &se) && se.Index != tc.index {
				t.Errorf("error names share %d, want %d", se.Index, tc.index)
			} else if se == nil && tc.index != 0 {
				t.Errorf("error %v does not name share %d", err, tc.index)
			}
		})
	}
}

func TestSplitCombineProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(rt, "n")
		k := rapid.IntRange(1, n).Draw(rt, "t")
		secret, shares := deal(t, newSet(k, n))
		pick := rapid.Permutation(shares).Draw(rt, "order")
		m := rapid.IntRange(k, n).Draw(rt, "m")
		got, err := Combine(pick[:m])
		if err != nil || !bytes.Equal(got, secret) {
			rt.Fatalf("%d of %d with %d shares: %v", k, n, m, err)
		}
	})
}

func TestVerifyShares(t *testing.T) {
	for _, p := range []struct{ t, n int }{{1, 1}, {2, 3}, {3, 5}, {5, 9}, {6, 12}, {20, 40}, {2, 255}, {255, 255}} {
		secret, shares := deal(t, newSet(p.t, p.n))
		if err := VerifyShares(secret, shares); err != nil {
			t.Errorf("%d of %d: %v", p.t, p.n, err)
		}
		// Every single damaged share is found, also where subsets are sampled.
		for _, i := range []int{0, p.n / 2, p.n - 1} {
			shares[i].cell.v.b[5] ^= 0x10
			if err := VerifyShares(secret, shares); !errors.Is(err, ErrInconsistent) {
				t.Errorf("%d of %d, share %d damaged: err = %v, want ErrInconsistent", p.t, p.n, i+1, err)
			}
			shares[i].cell.v.b[5] ^= 0x10
		}
		wrong := bytes.Clone(secret)
		wrong[0] ^= 1
		if err := VerifyShares(wrong, shares); !errors.Is(err, ErrInconsistent) {
			t.Errorf("%d of %d, wrong secret: err = %v, want ErrInconsistent", p.t, p.n, err)
		}
	}
	secret, shares := deal(t, newSet(2, 3))
	if err := VerifyShares(secret, shares[:2]); !errors.Is(err, ErrParameters) {
		t.Errorf("missing share: err = %v, want ErrParameters", err)
	}
	if err := VerifyShares(secret, nil); !errors.Is(err, ErrTooFew) {
		t.Errorf("no shares: err = %v, want ErrTooFew", err)
	}
	if err := VerifyShares(secret[:5], shares); !errors.Is(err, ErrParameters) {
		t.Errorf("short secret: err = %v, want ErrParameters", err)
	}
	if err := VerifyShares(secret, []Share{shares[0], shares[1], shares[1]}); !errors.Is(err, ErrRepeated) {
		t.Errorf("repeated share: err = %v, want ErrRepeated", err)
	}
}

func TestBinomialAtMost(t *testing.T) {
	for _, tc := range []struct {
		n, k int
		want bool
	}{{9, 5, true}, {10, 5, false}, {200, 1, true}, {201, 1, false}, {201, 200, false}, {255, 255, true}, {255, 128, false}, {20, 2, true}, {21, 2, false}} {
		if got := binomialAtMost(tc.n, tc.k, 200); got != tc.want {
			t.Errorf("binomialAtMost(%d, %d, 200) = %v, want %v", tc.n, tc.k, got, tc.want)
		}
	}
}

func TestRandomSubset(t *testing.T) {
	var hits [10]int
	for range 2000 {
		seen := map[int]bool{}
		for _, i := range randomSubset(10, 3) {
			if seen[i] {
				t.Fatal("an index twice")
			}
			seen[i] = true
			hits[i]++
		}
	}
	for i, h := range hits { // 600 expected, standard deviation 20
		if h < 400 || h > 800 {
			t.Errorf("index %d was picked %d times, want about 600", i, h)
		}
	}
}

func BenchmarkCombine5(b *testing.B) {
	_, shares := deal(b, newSet(5, 9))
	for b.Loop() {
		if _, err := Combine(shares[:5]); err != nil {
			b.Fatal(err)
		}
	}
}
