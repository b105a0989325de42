package verify

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// service is a key service that counts what it is asked.
type service struct {
	*httptest.Server
	files map[string][]byte // by path with its query
	asked []string
}

func newService(t *testing.T) *service {
	s := &service{files: map[string][]byte{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked = append(s.asked, r.URL.String())
		if b, ok := s.files[r.URL.String()]; ok {
			_, _ = w.Write(b)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestFetch(t *testing.T) {
	const day = 24 * time.Hour
	for _, line := range []string{"Milan", "Genoa", "Turin"} {
		for _, version := range []uint32{2, 3} {
			if version == 2 && line == "Turin" {
				continue // whose firmware never wrote one
			}
			t.Run(fmt.Sprint(line, version), func(t *testing.T) {
				p, s, cache := newPKI(t, line), newService(t), Cache(t.TempDir())
				report := p.report(t, version, VCEK, nil)
				chip := strings.Repeat("c1", len(p.chip))
				levels := "blSPL=03&teeSPL=01&snpSPL=08&ucodeSPL=115"
				if line == "Turin" {
					levels = "fmcSPL=02&" + levels
				}
				vcek, crl := "/vcek/v1/"+line+"/"+chip+"?"+levels, "/vcek/v1/"+line+"/crl"
				s.files[vcek], s.files[crl] = p.vcek.Raw, p.list(t, 5, -day, 30*day)
				kds := &KDS{s.URL, s.Client()}
				check := func(k *KDS, after time.Duration) (Verdict, error) {
					in := &Input{Report: report, Roots: p.input(t, report).Roots, Cache: cache, Now: p.now.Add(after)}
					if line != "Milan" && version == 2 { // two lines to try: both have roots
						in.Roots["Milan"] = newPKI(t, "Milan").input(t, report).Roots["Milan"]
					}
					in.Policy.Revocation = true
					err := in.Complete(context.Background(), k)
					return in.Check(), err
				}
				v, err := check(kds, 0)
				if err != nil || !v.Held() {
					t.Fatal(err, failed(v), s.asked)
				}
				asked := len(s.asked)
				if v, err = check(kds, day); err != nil || !v.Held() || len(s.asked) != asked {
					t.Error("with a filled cache:", err, failed(v), s.asked[asked:])
				}
				if v, err = check(nil, day); err != nil || !v.Held() {
					t.Error("offline:", err, failed(v))
				}
				v, err = check(nil, 31*day)
				if err != nil {
					t.Error(err)
				}
				wantFailed(t, v, "expired")
				s.files[crl] = p.list(t, 6, 30*day, 60*day)
				if v, err = check(kds, 31*day); err != nil || !v.Held() || s.asked[len(s.asked)-1] != crl {
					t.Error("a list that expired is fetched anew:", err, failed(v))
				}
			})
		}
	}
}

// What the service answers is believed no more than a file is.
func TestFetchRefused(t *testing.T) {
	p, other := newPKI(t, "Milan"), newPKI(t, "Genoa")
	report := p.report(t, 3, VCEK, nil)
	r, err := ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	path, file := r.vcekName("Milan")
	for name, answer := range map[string][]byte{
		"none":          nil,
		"not one":       []byte("busy"),
		"too long":      make([]byte, maxFetch+1),
		"other product": other.vcek.Raw,
		"other key":     p.vlek.Raw,
	} {
		t.Run(name, func(t *testing.T) {
			s, cache := newService(t), Cache(t.TempDir())
			if answer != nil {
				s.files[path] = answer
			}
			in := &Input{Report: report, Roots: p.input(t, report).Roots, Cache: cache, Now: p.now}
			if err := in.Complete(context.Background(), &KDS{s.URL, s.Client()}); err == nil {
				t.Error("accepted")
			}
			if _, err := os.Stat(string(cache) + "/" + file); err == nil {
				t.Error("kept")
			}
		})
	}
	masked := p.report(t, 3, VCEK, func(b []byte) { clear(b[0x1a0:0x1e0]) })
	in := &Input{Report: masked, Roots: p.input(t, masked).Roots, Now: p.now}
	if err := in.Complete(context.Background(), &KDS{"http://192.0.2.1", http.DefaultClient}); err == nil || !strings.Contains(err.Error(), "MASK_CHIP_ID") {
		t.Error(err)
	}
}
