use std::os::unix::fs::PermissionsExt as _;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::*;
use crate::clock::now_ms;

const HOUR_MS: i64 = 3_600_000;

fn site() -> (tempfile::TempDir, SiteCa) {
    let dir = tempfile::tempdir().unwrap();
    let ca = SiteCa::open(dir.path(), true, now_ms()).unwrap();
    (dir, ca)
}

fn csr(subject: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, subject);
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "ops");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn peer(pem: &str) -> Peer {
    Peer::from_certificate(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[test]
fn a_ca_is_made_once_and_loaded_after() {
    let (dir, ca) = site();
    let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = SiteCa::open(dir.path(), true, now_ms()).unwrap();
    assert_eq!(again.pem(), ca.pem());
    assert!(SiteCa::create(dir.path(), now_ms()).is_err(), "a CA was replaced");
    assert_eq!(SiteCa::load(dir.path(), now_ms()).unwrap().pem(), ca.pem());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_ca_that_is_absent_broken_or_run_out_is_told() {
    let (dir, ca) = site();
    let says = |now: i64, what: &str| {
        let error = SiteCa::load(dir.path(), now).unwrap_err().to_string();
        assert!(error.contains(what), "{error:?} does not say {what:?}");
    };
    says(ca.not_after_ms() + 1_000, "ran out at");
    says(now_ms() - 48 * HOUR_MS, "is the clock right?");
    let key = std::fs::read_to_string(dir.path().join("ca.key")).unwrap();
    std::fs::write(dir.path().join("ca.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    says(now_ms(), "ca.key: does not belong to ca.crt");
    std::fs::write(dir.path().join("ca.key"), key.replace(char::is_uppercase, "A")).unwrap();
    says(now_ms(), "ca.key: no private key");
    std::fs::write(dir.path().join("ca.key"), key).unwrap();
    let leaf = ca.issue(Role::Agent, "S1", &csr("x"), now_ms(), HOUR_MS).unwrap();
    std::fs::write(dir.path().join("ca.crt"), leaf.certificate_pem).unwrap();
    says(now_ms(), "is no CA certificate");
    std::fs::write(dir.path().join("ca.crt"), "").unwrap();
    says(now_ms(), "holds no certificate");
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    // The key alone: somebody removed half of it. Nothing new is made over it.
    assert!(SiteCa::open(dir.path(), true, now_ms()).is_err());
    assert!(SiteCa::open(&dir.path().join("none"), false, now_ms()).is_err());
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    let (_dir, ca) = site();
    let now = now_ms();
    let issued = ca.issue(Role::Agent, "S-1", &csr("somebody"), now, 24 * HOUR_MS).unwrap();
    let got = peer(&issued.certificate_pem);
    assert_eq!((got.role, got.name.as_str()), (Role::Agent, "S-1"));
    assert_eq!(got.serial_number, issued.serial_number);
    assert_eq!(got.not_after_ms, issued.not_after_ms);
    assert!((issued.not_after_ms - now - 24 * HOUR_MS).abs() <= 1_000);
    let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    let (_, x509) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!x509.is_ca());
    assert!(x509.subject_alternative_name().unwrap().is_none());

    let other = ca.issue(Role::Agent, "S-1", &csr("somebody"), now, HOUR_MS).unwrap();
    assert_ne!(other.serial_number, got_serial(&issued.certificate_pem));
    let long = ca.issue(Role::Agent, "S-1", &csr("x"), now, 100 * CA_LIFETIME_MS).unwrap();
    assert!(long.not_after_ms <= ca.not_after_ms(), "outlives its CA");
}

fn got_serial(pem: &str) -> String {
    peer(pem).serial_number
}

#[test]
fn a_request_that_is_none_or_not_signed_by_its_key_is_refused() {
    let (_dir, ca) = site();
    let good = csr("x");
    let lines: Vec<&str> = good.lines().collect();
    let mut changed: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
    // The last full line holds the signature.
    let at = changed.len() - 3;
    let swapped: String = changed[at].chars().rev().collect();
    changed[at] = swapped;
    for bad in
        ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", ca.pem()]
            .into_iter()
            .map(str::to_owned)
            .chain([changed.join("\n"), "x".repeat(20_000)])
    {
        let error = ca.issue(Role::Agent, "S", &bad, now_ms(), HOUR_MS).unwrap_err();
        assert!(matches!(error, PkiError::BadRequest(_)), "{error}");
    }
}

#[test]
fn credentials_of_a_person_are_written_with_a_closed_key() {
    let (_dir, ca) = site();
    let out = tempfile::tempdir().unwrap();
    ops_cert(&ca, "anna", "https://127.0.0.1:8443", out.path(), now_ms(), HOUR_MS).unwrap();
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let got = peer(&read("tls.crt"));
    assert_eq!((got.role, got.name.as_str()), (Role::Ops, "anna"));
    assert_eq!(read("ca.crt"), ca.pem());
    assert_eq!(read("url"), "https://127.0.0.1:8443\n");
    let mode = std::fs::metadata(out.path().join("tls.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for bad in ["", "a b", "a/b", "a\n"] {
        assert!(ops_cert(&ca, bad, "u", out.path(), now_ms(), HOUR_MS).is_err(), "{bad:?}");
    }
}

#[test]
fn the_report_key_stays_the_same() {
    let (dir, _) = site();
    let first = report_key(dir.path()).unwrap();
    assert_eq!(first.to_bytes(), report_key(dir.path()).unwrap().to_bytes());
}
