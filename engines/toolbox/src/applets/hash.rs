//! Checksums: md5sum, sha1sum, sha256sum, sha512sum, cksum.

use crate::context::{about, fail, Context, Fail, Outcome};
use crate::{files, options};

/// A hash that eats blocks of its size.
trait Hash {
    const BLOCK: usize;
    /// of the length behind the padding
    const LENGTH: usize;
    const BIG_ENDIAN: bool;
    fn block(&mut self, block: &[u8]);
    fn sum(&self) -> Vec<u8>;
}

struct Hasher<H> {
    hash: H,
    held: Vec<u8>,
    total: u64,
}

impl<H: Hash> Hasher<H> {
    fn new(hash: H) -> Hasher<H> {
        Hasher {
            hash,
            held: Vec::new(),
            total: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() / H::BLOCK * H::BLOCK;
        for block in self.held[..whole].chunks(H::BLOCK) {
            self.hash.block(block);
        }
        self.held.drain(..whole);
    }

    fn finish(mut self) -> Vec<u8> {
        let bits = self.total.wrapping_mul(8);
        let mut tail = vec![0x80];
        while (self.held.len() + tail.len() + H::LENGTH) % H::BLOCK != 0 {
            tail.push(0);
        }
        if H::BIG_ENDIAN {
            tail.resize(tail.len() + H::LENGTH - 8, 0);
            tail.extend_from_slice(&bits.to_be_bytes());
        } else {
            tail.extend_from_slice(&bits.to_le_bytes());
        }
        self.update(&tail);
        self.hash.sum()
    }
}

fn big_words(block: &[u8]) -> impl Iterator<Item = u32> + '_ {
    block.chunks(4).map(|bytes| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    })
}

struct Md5([u32; 4]);

impl Hash for Md5 {
    const BLOCK: usize = 64;
    const LENGTH: usize = 8;
    const BIG_ENDIAN: bool = false;

    fn block(&mut self, block: &[u8]) {
        const SHIFTS: [[u32; 4]; 4] = [
            [7, 12, 17, 22],
            [5, 9, 14, 20],
            [4, 11, 16, 23],
            [6, 10, 15, 21],
        ];
        let words: Vec<u32> = big_words(block).map(u32::swap_bytes).collect();
        let [mut a, mut b, mut c, mut d] = self.0;
        for i in 0..64 {
            let (mixed, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), (7 * i) % 16),
            };
            // RFC 1321: the sines of whole radians
            let constant = (((i + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a
                .wrapping_add(mixed)
                .wrapping_add(constant)
                .wrapping_add(words[word]);
            a = d;
            d = c;
            c = b;
            b = b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4]));
        }
        for (word, add) in self.0.iter_mut().zip([a, b, c, d]) {
            *word = word.wrapping_add(add);
        }
    }

    fn sum(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

struct Sha1([u32; 5]);

impl Hash for Sha1 {
    const BLOCK: usize = 64;
    const LENGTH: usize = 8;
    const BIG_ENDIAN: bool = true;

    fn block(&mut self, block: &[u8]) {
        let mut words: Vec<u32> = big_words(block).collect();
        for i in 16..80 {
            words
                .push((words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.0;
        for (i, word) in words.iter().enumerate() {
            let (mixed, constant) = match i / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let sum = a
                .rotate_left(5)
                .wrapping_add(mixed)
                .wrapping_add(e)
                .wrapping_add(constant)
                .wrapping_add(*word);
            e = d;
            d = c;
            c = b.rotate_left(30);
            b = a;
            a = sum;
        }
        for (word, add) in self.0.iter_mut().zip([a, b, c, d, e]) {
            *word = word.wrapping_add(add);
        }
    }

    fn sum(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_be_bytes()).collect()
    }
}

/// The first primes, from whose roots SHA-2 takes its constants.
fn primes(count: usize) -> Vec<u64> {
    (2u64..)
        .filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0))
        .take(count)
        .collect()
}

/// The first 64 bits of the fraction of a root: the largest x with x^power <= prime * 2^(64*power),
/// by bisection, because floating point has too few digits.
fn root_fraction(prime: u64, power: u32) -> u64 {
    let whole = (1..)
        .take_while(|n: &u64| n.pow(power) <= prime)
        .last()
        .unwrap_or(0);
    let (mut low, mut high) = (0u128, 1u128 << 64);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if power_at_most(u128::from(whole) << 64 | middle, power, prime) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low as u64
}

/// Is value^power <= prime << (64 * power)? In limbs of 32 bits.
fn power_at_most(value: u128, power: u32, prime: u64) -> bool {
    let limbs = |value: u128| -> Vec<u64> {
        (0..4)
            .map(|i| (value >> (32 * i)) as u64 & 0xffff_ffff)
            .collect()
    };
    let factor = limbs(value);
    let mut product = factor.clone();
    for _ in 1..power {
        let mut next = vec![0u64; product.len() + factor.len() + 1];
        for (i, a) in product.iter().enumerate() {
            let mut carry = 0;
            for (j, b) in factor.iter().enumerate() {
                let sum = next[i + j] + a * b + carry;
                next[i + j] = sum & 0xffff_ffff;
                carry = sum >> 32;
            }
            next[i + factor.len()] += carry;
        }
        product = next;
    }
    let shift = 2 * power as usize;
    let above: u128 = product
        .iter()
        .skip(shift)
        .rev()
        .fold(0, |sum, limb| sum << 32 | u128::from(*limb));
    above < u128::from(prime)
        || (above == u128::from(prime) && product[..shift].iter().all(|limb| *limb == 0))
}

struct Sha256 {
    state: [u32; 8],
    constants: Vec<u32>,
}

impl Sha256 {
    fn new() -> Sha256 {
        let primes = primes(64);
        let mut state = [0; 8];
        for (word, prime) in state.iter_mut().zip(&primes) {
            *word = (root_fraction(*prime, 2) >> 32) as u32;
        }
        Sha256 {
            state,
            constants: primes
                .iter()
                .map(|prime| (root_fraction(*prime, 3) >> 32) as u32)
                .collect(),
        }
    }
}

impl Hash for Sha256 {
    const BLOCK: usize = 64;
    const LENGTH: usize = 8;
    const BIG_ENDIAN: bool = true;

    fn block(&mut self, block: &[u8]) {
        let mut words: Vec<u32> = big_words(block).collect();
        for i in 16..64 {
            let (a, b) = (words[i - 15], words[i - 2]);
            let small = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let large = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            words.push(
                words[i - 16]
                    .wrapping_add(small)
                    .wrapping_add(words[i - 7])
                    .wrapping_add(large),
            );
        }
        let mut s = self.state;
        for (word, constant) in words.iter().zip(&self.constants) {
            let mix = s[4].rotate_right(6) ^ s[4].rotate_right(11) ^ s[4].rotate_right(25);
            let choice = (s[4] & s[5]) ^ (!s[4] & s[6]);
            let one = s[7]
                .wrapping_add(mix)
                .wrapping_add(choice)
                .wrapping_add(*constant)
                .wrapping_add(*word);
            let mix = s[0].rotate_right(2) ^ s[0].rotate_right(13) ^ s[0].rotate_right(22);
            let two = mix.wrapping_add((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = [
                one.wrapping_add(two),
                s[0],
                s[1],
                s[2],
                s[3].wrapping_add(one),
                s[4],
                s[5],
                s[6],
            ];
        }
        for (word, add) in self.state.iter_mut().zip(s) {
            *word = word.wrapping_add(add);
        }
    }

    fn sum(&self) -> Vec<u8> {
        self.state
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }
}

struct Sha512 {
    state: [u64; 8],
    constants: Vec<u64>,
}

impl Sha512 {
    fn new() -> Sha512 {
        let primes = primes(80);
        let mut state = [0; 8];
        for (word, prime) in state.iter_mut().zip(&primes) {
            *word = root_fraction(*prime, 2);
        }
        Sha512 {
            state,
            constants: primes
                .iter()
                .map(|prime| root_fraction(*prime, 3))
                .collect(),
        }
    }
}

impl Hash for Sha512 {
    const BLOCK: usize = 128;
    const LENGTH: usize = 16;
    const BIG_ENDIAN: bool = true;

    fn block(&mut self, block: &[u8]) {
        let mut words: Vec<u64> = block
            .chunks(8)
            .map(|bytes| {
                bytes
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            })
            .collect();
        for i in 16..80 {
            let (a, b) = (words[i - 15], words[i - 2]);
            let small = a.rotate_right(1) ^ a.rotate_right(8) ^ (a >> 7);
            let large = b.rotate_right(19) ^ b.rotate_right(61) ^ (b >> 6);
            words.push(
                words[i - 16]
                    .wrapping_add(small)
                    .wrapping_add(words[i - 7])
                    .wrapping_add(large),
            );
        }
        let mut s = self.state;
        for (word, constant) in words.iter().zip(&self.constants) {
            let mix = s[4].rotate_right(14) ^ s[4].rotate_right(18) ^ s[4].rotate_right(41);
            let choice = (s[4] & s[5]) ^ (!s[4] & s[6]);
            let one = s[7]
                .wrapping_add(mix)
                .wrapping_add(choice)
                .wrapping_add(*constant)
                .wrapping_add(*word);
            let mix = s[0].rotate_right(28) ^ s[0].rotate_right(34) ^ s[0].rotate_right(39);
            let two = mix.wrapping_add((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = [
                one.wrapping_add(two),
                s[0],
                s[1],
                s[2],
                s[3].wrapping_add(one),
                s[4],
                s[5],
                s[6],
            ];
        }
        for (word, add) in self.state.iter_mut().zip(s) {
            *word = word.wrapping_add(add);
        }
    }

    fn sum(&self) -> Vec<u8> {
        self.state
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }
}

fn read(context: &mut Context, name: &str, mut each: impl FnMut(&[u8])) -> Result<bool, Fail> {
    let code = files::each_input(context, &[name.to_owned()], |_, _, reader| loop {
        let piece = reader.fill_buf()?;
        let n = piece.len();
        if n == 0 {
            return Ok(());
        }
        each(piece);
        reader.consume(n);
    })?;
    Ok(code == 0)
}

fn sum_with<H: Hash>(context: &mut Context, name: &str, hash: H) -> Result<Option<String>, Fail> {
    let mut hasher = Hasher::new(hash);
    if !read(context, name, |piece| hasher.update(piece))? {
        return Ok(None);
    }
    Ok(Some(
        hasher
            .finish()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    ))
}

fn sum(context: &mut Context, name: &str) -> Result<Option<String>, Fail> {
    match context.name.as_str() {
        "md5sum" => sum_with(
            context,
            name,
            Md5([0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]),
        ),
        "sha1sum" => sum_with(
            context,
            name,
            Sha1([
                0x6745_2301,
                0xefcd_ab89,
                0x98ba_dcfe,
                0x1032_5476,
                0xc3d2_e1f0,
            ]),
        ),
        "sha512sum" => sum_with(context, name, Sha512::new()),
        _ => sum_with(context, name, Sha256::new()),
    }
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("check", 'c'),
        ("status", 's'),
        ("quiet", 'q'),
        ("binary", 'b'),
        ("text", 't'),
        ("warn", 'w'),
    ];
    let options = options::parse(&context.args, "csqbtw", &long)?;
    let names = if options.rest.is_empty() {
        vec!["-".to_owned()]
    } else {
        options.rest.clone()
    };
    let mut code = 0;
    if !options.has('c') {
        for name in names {
            match sum(context, &name)? {
                Some(sum) => writeln!(context.output, "{sum}  {name}")?,
                None => code = 1,
            }
        }
        return Ok(code);
    }
    for list in names {
        let mut text = Vec::new();
        if !read(context, &list, |piece| text.extend_from_slice(piece))? {
            code = 1;
            continue;
        }
        let (mut failed, mut lines) = (0, 0);
        for line in String::from_utf8_lossy(&text).lines() {
            let (wanted, name) = match line.split_once(' ') {
                Some((wanted, name)) if name.len() > 1 => (wanted, &name[1..]),
                _ => continue,
            };
            lines += 1;
            let found = sum(context, name)?;
            let fits = found.as_deref() == Some(&wanted.to_lowercase());
            failed += i32::from(!fits);
            let silent = options.has('s') || (fits && options.has('q'));
            if !silent {
                let word = match (fits, found.is_some()) {
                    (true, _) => "OK",
                    (false, true) => "FAILED",
                    (false, false) => "FAILED open or read",
                };
                writeln!(context.output, "{name}: {word}")?;
            }
        }
        if lines == 0 {
            return fail(about(
                &list,
                &std::io::Error::new(std::io::ErrorKind::Other, "no checksum lines found"),
            ));
        }
        if failed > 0 {
            code = 1;
            if !options.has('s') {
                context.warn(format!("{failed} of {lines} checksums did NOT match"));
            }
        }
    }
    Ok(code)
}

/// POSIX's CRC
pub(super) fn cksum(context: &mut Context) -> Outcome {
    let names = if context.args.is_empty() {
        vec!["-".to_owned()]
    } else {
        context.args.clone()
    };
    let mut code = 0;
    for name in names {
        let (mut crc, mut length) = (0u32, 0u64);
        let step = |crc: &mut u32, byte: u8| {
            *crc ^= u32::from(byte) << 24;
            for _ in 0..8 {
                *crc = (*crc << 1) ^ if *crc >> 31 == 1 { 0x04c1_1db7 } else { 0 };
            }
        };
        if !read(context, &name, |piece| {
            length += piece.len() as u64;
            piece.iter().for_each(|byte| step(&mut crc, *byte));
        })? {
            code = 1;
            continue;
        }
        let mut rest = length;
        while rest > 0 {
            step(&mut crc, rest as u8);
            rest >>= 8;
        }
        let shown = if name == "-" {
            String::new()
        } else {
            format!(" {name}")
        };
        writeln!(context.output, "{} {length}{shown}", !crc)?;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run, Room};

    // of RFC 1321, FIPS 180 and GNU coreutils
    #[test]
    fn sums_are_those_of_the_standards() {
        for (command, input, expected) in [
            ("md5sum", "", "d41d8cd98f00b204e9800998ecf8427e"),
            ("md5sum", "abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("sha1sum", "abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("sha256sum", "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("sha256sum", "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (
                "sha512sum",
                "abc",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            assert_eq!(output(command, input), format!("{expected}  -\n"));
        }
        assert_eq!(output("cksum", "abc"), "1219131554 3\n");
        let long = "a".repeat(1_000_000);
        assert_eq!(
            output("sha256sum", &long),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0  -\n"
        );
        assert_eq!(
            output("md5sum", &long),
            "7707d6ae4e027c70eea2a935c2296f21  -\n"
        );
    }

    #[test]
    fn sums_are_checked() {
        let room = Room::new();
        room.write("f", "abc");
        room.write("list", "900150983cd24fb0d6963f7d28e17f72  f\n");
        assert_eq!(room.output("md5sum -c list"), "f: OK\n");
        room.write("f", "abd");
        assert_eq!(room.run("md5sum -c list", "").0, 1);
        room.write("list", "nonsense\n");
        assert_eq!(room.run("md5sum -c list", "").0, 1);
        assert_eq!(run("sha256sum /nonexistent", "").0, 1);
        assert_eq!(run("md5sum -q -x", "").0, 1);
    }
}
