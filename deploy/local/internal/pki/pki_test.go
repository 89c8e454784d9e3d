package pki

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func parse(t *testing.T, certificate []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certificate)
	if block == nil {
		t.Fatal("no PEM block")
	}
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestServerCertificateIsForItsNamesOnly(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	authority, err := NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Server("kube-apiserver", []string{"kubernetes.default.svc"}, []netip.Addr{netip.MustParseAddr("10.77.0.1")}, now)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Certificate)
	certificate := parse(t, pair.Certificate)
	for name, good := range map[string]bool{"kubernetes.default.svc": true, "10.77.0.1": true, "10.77.0.2": false, "kube-apiserver": false} {
		_, err := certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now})
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	client := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := certificate.Verify(client); err == nil {
		t.Error("a server's certificate must not identify a client")
	}
}

func TestClientCertificateCarriesUserAndGroups(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	authority, err := NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	certificateFile, keyFile := filepath.Join(folder, "ca.crt"), filepath.Join(folder, "ca.key")
	for file, content := range map[string][]byte{certificateFile: authority.Certificate, keyFile: authority.Key} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loaded, err := LoadAuthority(certificateFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := loaded.Client("system:node:b-003", []string{"system:nodes"}, now)
	if err != nil {
		t.Fatal(err)
	}
	certificate := parse(t, pair.Certificate)
	if certificate.Subject.CommonName != "system:node:b-003" || len(certificate.Subject.Organization) != 1 || certificate.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject %v", certificate.Subject)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Certificate)
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: usage}); err != nil {
		t.Error(err)
	}
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now.Add(2 * lifetime), KeyUsages: usage}); err == nil {
		t.Error("the certificate never ends")
	}
	if certificate.IsCA {
		t.Error("a client's certificate must not sign others")
	}
	other, err := NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(other.Certificate)
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: usage}); err == nil {
		t.Error("another cluster's authority accepts it")
	}
}
