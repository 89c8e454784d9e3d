//! SPDX licence expressions against a list of allowed licences.

/// True if the expression can be satisfied with allowed licences alone. An old-style `/` means `OR`.
pub fn allowed(expression: &str, allow: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut place = 0;
    let result = any(&tokens, &mut place, allow)?;
    if place == tokens.len() {
        Ok(result)
    } else {
        Err(format!("{expression:?}: not understood at {:?}", tokens[place]))
    }
}

fn any(tokens: &[&str], place: &mut usize, allow: &[String]) -> Result<bool, String> {
    let mut result = all(tokens, place, allow)?;
    while tokens.get(*place) == Some(&"OR") {
        *place += 1;
        result |= all(tokens, place, allow)?;
    }
    Ok(result)
}

fn all(tokens: &[&str], place: &mut usize, allow: &[String]) -> Result<bool, String> {
    let mut result = one(tokens, place, allow)?;
    while tokens.get(*place) == Some(&"AND") {
        *place += 1;
        result &= one(tokens, place, allow)?;
    }
    Ok(result)
}

fn one(tokens: &[&str], place: &mut usize, allow: &[String]) -> Result<bool, String> {
    let token = tokens.get(*place).copied().ok_or("the expression ends too early")?;
    *place += 1;
    match token {
        "(" => {
            let result = any(tokens, place, allow)?;
            if tokens.get(*place) != Some(&")") {
                return Err("a parenthesis is not closed".to_owned());
            }
            *place += 1;
            Ok(result)
        }
        ")" | "OR" | "AND" | "WITH" => Err(format!("{token:?} where a licence should be")),
        licence => {
            let mut id = licence.to_owned();
            if tokens.get(*place) == Some(&"WITH") {
                let exception = tokens.get(*place + 1).ok_or("an exception is missing")?;
                id = format!("{licence} WITH {exception}");
                *place += 2;
            }
            Ok(allow.contains(&id))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allow: Vec<String> = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).to_vec();
        for (expression, answer) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only", false),
            ("GPL-3.0-only OR MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
            ("Apache-2.0 WITH LLVM-exception", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
        ] {
            assert_eq!(allowed(expression, &allow), Ok(answer), "{expression}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "MIT WITH"] {
            assert!(allowed(broken, &allow).is_err(), "{broken:?}");
        }
    }
}
