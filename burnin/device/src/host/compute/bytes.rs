//! Hashes, ciphers and compressors: each answer against a known one, against a second implementation on other parts of
//! the core, or against what went in.

use std::time::Instant;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use chacha20poly1305::ChaCha20Poly1305;
use sha2::Digest;
use whetstone_burnin::suite::CpuFamily;

use super::task::{Mismatch, Task, Work, compare};
use crate::host::bench::Tap;
use crate::host::stream::Stream;

/// Bytes of the known-answer input: the first of the [`Stream`] with seed 0. The answers were computed by Python's
/// hashlib, zlib and the packages `cryptography` and `blake3`, so by other code on another machine.
const KNOWN_INPUT: usize = 64 << 10;
/// Bytes of a round's own input.
const INPUT: usize = 256 << 10;

pub fn tasks(family: CpuFamily, seed: u64) -> Vec<Box<dyn Task>> {
    match family {
        CpuFamily::Gemm => Vec::new(),
        CpuFamily::Hash => HASHES.iter().map(|h| Box::new(HashTask::new(h, seed)) as Box<dyn Task>).collect(),
        CpuFamily::Crypto => {
            CIPHERS.iter().map(|c| Box::new(CipherTask::new(c, seed)) as Box<dyn Task>).collect()
        }
        CpuFamily::Compression => {
            CODECS.iter().map(|c| Box::new(CodecTask::new(c, seed)) as Box<dyn Task>).collect()
        }
    }
}

/// A hash in two implementations.
struct Hash {
    name: &'static str,
    /// Of the known input.
    known: &'static str,
    /// The one that uses the core's own instructions or vector units where it has them.
    fast: fn(&[u8]) -> Vec<u8>,
    /// The one that does not, or that takes another path.
    other: fn(&[u8]) -> Vec<u8>,
}

const HASHES: [Hash; 5] = [
    Hash {
        name: "sha256",
        known: "61232a41c8f3858a2d34791cc4de6f8ce51226ca1816b74d313d73feddbd3804",
        fast: |data| sha2::Sha256::digest(data).to_vec(),
        other: |data| hmac_sha256::Hash::hash(data).to_vec(),
    },
    Hash {
        name: "sha512",
        known: "5c1c8e908902ea343c17e5ae559b19ffbf196f3830fc56528bb4286fd0aded212871da4069f56ab76eb674f6343c5cbcec4f3f6b08f078005c494a54d4a05fae",
        fast: |data| sha2::Sha512::digest(data).to_vec(),
        other: |data| hmac_sha512::Hash::hash(data).to_vec(),
    },
    Hash {
        name: "crc32",
        known: "58e780c1",
        fast: |data| crc32fast::hash(data).to_be_bytes().to_vec(),
        other: |data| CRC32.checksum(data).to_be_bytes().to_vec(),
    },
    Hash {
        name: "crc32c",
        known: "54dc4146",
        fast: |data| crc32c::crc32c(data).to_be_bytes().to_vec(),
        other: |data| CRC32C.checksum(data).to_be_bytes().to_vec(),
    },
    Hash {
        name: "blake3",
        known: "86907a76e2945fdc5b05515a2e1c887a76933c774bb1097926ce3b2dcee60662",
        // Whole: many chunks at once, one per vector lane. In pieces of one block: one after the other.
        fast: |data| blake3::hash(data).as_bytes().to_vec(),
        other: |data| {
            let mut hasher = blake3::Hasher::new();
            data.chunks(64).for_each(|block| {
                hasher.update(block);
            });
            hasher.finalize().as_bytes().to_vec()
        },
    },
];

/// By table, on the integer unit.
static CRC32: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
static CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

struct HashTask {
    hash: &'static Hash,
    seed: u64,
    known: Vec<u8>,
    input: Vec<u8>,
}

impl HashTask {
    fn new(hash: &'static Hash, seed: u64) -> Self {
        Self { hash, seed, known: known_input(), input: vec![0; INPUT] }
    }
}

fn known_input() -> Vec<u8> {
    let mut known = vec![0; KNOWN_INPUT];
    Stream::new(0).fill(&mut known);
    known
}

impl Task for HashTask {
    fn name(&self) -> &str {
        self.hash.name
    }

    fn family(&self) -> CpuFamily {
        CpuFamily::Hash
    }

    fn step(&mut self, round: u64, tap: &dyn Tap) -> Result<Work, Mismatch> {
        let Hash { name, known, fast, other } = self.hash;
        Stream::new(self.seed ^ round).fill(&mut self.input);
        let started = Instant::now();
        let mut of_known = fast(&self.known);
        let mut of_input = fast(&self.input);
        let busy = started.elapsed();
        tap.produced(name, &mut of_known);
        tap.produced(name, &mut of_input);
        let answer = hex(&of_known);
        if answer != *known {
            return Err(Mismatch(format!("known input: expected {known}, got {answer}")));
        }
        compare("second implementation against the first", &other(&self.input), &of_input)?;
        Ok(Work { amount: (KNOWN_INPUT + INPUT) as f64, busy, digest: None })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// An authenticated cipher: `seal` encrypts in place and gives the tag, `open` undoes it and says whether the tag fits.
struct Cipher {
    name: &'static str,
    /// SHA-256 of the known input's ciphertext and tag, with key 00..1f, nonce 00..0b and [`ASSOCIATED`].
    known: &'static str,
    seal: fn(&Key, &Iv, &mut [u8]) -> Option<Mac>,
    open: fn(&Key, &Iv, &mut [u8], &Mac) -> bool,
}

type Key = [u8; 32];
type Iv = [u8; 12];
type Mac = [u8; 16];

const ASSOCIATED: &[u8] = b"whetstone";

const CIPHERS: [Cipher; 2] = [
    Cipher {
        name: "aes256-gcm",
        known: "e307e3b522830b11b88bdcafb7fc7710a83f3d5b5f4fa76d46ac5a065d52809c",
        seal: seal::<Aes256Gcm>,
        open: open::<Aes256Gcm>,
    },
    Cipher {
        name: "chacha20-poly1305",
        known: "fa640140fe274cb4b02f55dcb4ce2e2a7733274bf9ab582fffaa057f78550495",
        seal: seal::<ChaCha20Poly1305>,
        open: open::<ChaCha20Poly1305>,
    },
];

fn seal<A>(key: &Key, nonce: &Iv, data: &mut [u8]) -> Option<Mac>
where
    A: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16> + KeyInit,
{
    let cipher = A::new_from_slice(key).ok()?;
    Some(cipher.encrypt_inout_detached(&Nonce::from(*nonce), ASSOCIATED, data.into()).ok()?.into())
}

fn open<A>(key: &Key, nonce: &Iv, data: &mut [u8], tag: &Mac) -> bool
where
    A: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16> + KeyInit,
{
    let opened = A::new_from_slice(key).map(|cipher| {
        cipher.decrypt_inout_detached(&Nonce::from(*nonce), ASSOCIATED, data.into(), &Tag::from(*tag))
    });
    matches!(opened, Ok(Ok(())))
}

struct CipherTask {
    cipher: &'static Cipher,
    seed: u64,
    known: Vec<u8>,
    plain: Vec<u8>,
    data: Vec<u8>,
}

impl CipherTask {
    fn new(cipher: &'static Cipher, seed: u64) -> Self {
        Self {
            cipher,
            seed,
            known: known_input(),
            plain: vec![0; INPUT],
            data: Vec::with_capacity(INPUT + 16),
        }
    }
}

impl Task for CipherTask {
    fn name(&self) -> &str {
        self.cipher.name
    }

    fn family(&self) -> CpuFamily {
        CpuFamily::Crypto
    }

    fn step(&mut self, round: u64, tap: &dyn Tap) -> Result<Work, Mismatch> {
        let Cipher { name, known, seal, open } = self.cipher;
        let refused = || Mismatch(format!("{name} refused a valid key, nonce and length"));
        let ascending: [u8; 32] = std::array::from_fn(|i| i as u8);
        let nonce: [u8; 12] = std::array::from_fn(|i| i as u8);

        self.data.clear();
        self.data.extend_from_slice(&self.known);
        let tag = seal(&ascending, &nonce, &mut self.data).ok_or_else(refused)?;
        self.data.extend_from_slice(&tag);
        tap.produced(name, &mut self.data);
        let answer = hex(&sha2::Sha256::digest(&self.data));
        if answer != *known {
            return Err(Mismatch(format!(
                "known input: SHA-256 of the ciphertext expected {known}, got {answer}"
            )));
        }

        let mut stream = Stream::new(self.seed ^ round);
        let (mut key, mut nonce) = ([0; 32], [0; 12]);
        stream.fill(&mut key);
        stream.fill(&mut nonce);
        stream.fill(&mut self.plain);
        self.data.clear();
        self.data.extend_from_slice(&self.plain);
        let started = Instant::now();
        let tag = seal(&key, &nonce, &mut self.data).ok_or_else(refused)?;
        let sealed = started.elapsed();
        let digest = fingerprint(&self.data);
        tap.produced(name, &mut self.data);
        let started = Instant::now();
        if !open(&key, &nonce, &mut self.data, &tag) {
            return Err(Mismatch(format!("its own ciphertext of round {round} did not authenticate")));
        }
        let busy = sealed + started.elapsed();
        compare("decrypted against the plain text", &self.plain, &self.data)?;
        Ok(Work { amount: 2.0 * INPUT as f64, busy, digest: Some(digest) })
    }
}

/// A compressor and its opposite.
struct Codec {
    name: &'static str,
    pack: fn(&[u8]) -> Option<Vec<u8>>,
    unpack: fn(&[u8], usize) -> Option<Vec<u8>>,
}

const CODECS: [Codec; 3] = [
    Codec {
        name: "zstd",
        pack: |data| zstd::bulk::compress(data, 3).ok(),
        unpack: |packed, len| zstd::bulk::decompress(packed, len).ok(),
    },
    Codec {
        name: "lz4",
        pack: |data| Some(lz4_flex::block::compress(data)),
        unpack: |packed, len| lz4_flex::block::decompress(packed, len).ok(),
    },
    Codec {
        name: "deflate",
        pack: |data| Some(miniz_oxide::deflate::compress_to_vec(data, 6)),
        unpack: |packed, len| miniz_oxide::inflate::decompress_to_vec_with_limit(packed, len).ok(),
    },
];

struct CodecTask {
    codec: &'static Codec,
    seed: u64,
    input: Vec<u8>,
}

impl CodecTask {
    fn new(codec: &'static Codec, seed: u64) -> Self {
        Self { codec, seed, input: vec![0; INPUT] }
    }

    /// Half of it repeats what came before and the rest leans to few values, so that both matching and entropy coding work.
    fn fill(&mut self, round: u64) {
        let mut stream = Stream::new(self.seed ^ round);
        let mut at = 0;
        while at < self.input.len() {
            let word = stream.word();
            let len = (4 + (word & 63) as usize).min(self.input.len() - at);
            let back = 1 + (word >> 32) as usize % 8192;
            if word & 64 != 0 && back <= at {
                for i in at..at + len {
                    self.input[i] = self.input[i - back];
                }
            } else {
                for byte in &mut self.input[at..at + len] {
                    let bits = stream.word();
                    *byte = (bits & (bits >> 8) & 0xff) as u8;
                }
            }
            at += len;
        }
    }
}

impl Task for CodecTask {
    fn name(&self) -> &str {
        self.codec.name
    }

    fn family(&self) -> CpuFamily {
        CpuFamily::Compression
    }

    fn step(&mut self, round: u64, tap: &dyn Tap) -> Result<Work, Mismatch> {
        let Codec { name, pack, unpack } = self.codec;
        self.fill(round);
        let started = Instant::now();
        let packed =
            pack(&self.input).ok_or_else(|| Mismatch(format!("{name} could not compress round {round}")))?;
        let restored = unpack(&packed, INPUT);
        let busy = started.elapsed();
        let mut restored = restored
            .ok_or_else(|| Mismatch(format!("{name} could not read its own output of round {round}")))?;
        tap.produced(name, &mut restored);
        compare("restored against what went in", &self.input, &restored)?;
        Ok(Work { amount: 2.0 * INPUT as f64, busy, digest: Some(fingerprint(&packed)) })
    }
}

/// 64 bits of a byte string, for cores to compare.
fn fingerprint(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    hash.as_bytes().iter().take(8).fold(0, |sum, b| sum << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bench::Silicon;
    use crate::host::bench::testing::FlipOne;

    fn all() -> Vec<Box<dyn Task>> {
        CpuFamily::ALL.iter().flat_map(|family| tasks(*family, 11)).collect()
    }

    #[test]
    fn every_unit_is_right_on_a_sound_core_and_equal_on_a_second_look() {
        for (mut first, mut second) in all().into_iter().zip(all()) {
            for round in 0..2 {
                let (one, two) = (first.step(round, &Silicon), second.step(round, &Silicon));
                let digest = |work: Result<Work, Mismatch>| work.map(|w| w.digest);
                assert_eq!(digest(one.clone()), digest(two), "{}", first.name());
                assert!(one.is_ok_and(|work| work.amount > 0.0), "{}", first.name());
            }
        }
    }

    #[test]
    fn every_single_flipped_bit_is_found_in_every_unit() {
        for task in &mut all() {
            for seed in 0..20 {
                let tap = FlipOne::new("", seed % 2, seed);
                let steps: Vec<_> = (0..2).map(|round| task.step(round, &tap)).collect();
                assert!(tap.flipped() && steps.iter().any(Result::is_err), "{} seed {seed}", task.name());
            }
        }
    }
}
