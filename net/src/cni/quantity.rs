//! Kubernetes resource quantities, as far as bandwidth annotations use them.

/// Bits per second of an annotation such as `10M`, within the kubelet's bounds
/// of 1k and 1P.
pub(crate) fn bandwidth(text: &str) -> Result<u64, String> {
    let value = quantity(text).ok_or_else(|| format!("{text:?} is not a quantity such as 10M"))?;
    if !(1e3..=1e15).contains(&value) {
        return Err(format!("{text:?} is outside 1k to 1P bits per second"));
    }
    Ok(value.ceil() as u64)
}

fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(s, f)| Some((text.strip_suffix(s)?, *f)))
        .unwrap_or((text, 1.0));
    // f64 also reads "inf" and "nan"; a quantity has digits, one dot, an exponent.
    if number.is_empty()
        || !number
            .chars()
            .all(|c| c.is_ascii_digit() || "+-.eE".contains(c))
    {
        return None;
    }
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::bandwidth;

    #[test]
    fn table() {
        for (text, want) in [
            ("10M", 10_000_000),
            ("1k", 1_000),
            ("1e6", 1_000_000),
            ("1.5G", 1_500_000_000),
            ("1Mi", 1_048_576),
            ("1P", 1_000_000_000_000_000),
            ("2000000m", 2_000),
        ] {
            assert_eq!(bandwidth(text), Ok(want), "{text}");
        }
        for text in [
            "", "M", "10X", "inf", "nan", "-10M", "999", "2P", "0", "10 M",
        ] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }
}
