//! Rust source without its comments, strings and unit tests, so that rules about code see code alone.

/// The text with comments, strings and characters blanked out; every line keeps its number.
pub fn code_only(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&c) = source.get(at) {
        let end = match c {
            '/' if source.get(at + 1) == Some(&'/') => end_of_line(&source, at),
            '/' if source.get(at + 1) == Some(&'*') => end_of_block_comment(&source, at),
            '"' => end_of_string(&source, at),
            '\'' => end_of_char(&source, at),
            _ if starts_word(&source, at) => match raw_string(&source, at) {
                Some(end) => end,
                None => {
                    code.push(c);
                    at += 1;
                    continue;
                }
            },
            _ => at,
        };
        if end == at {
            code.push(c);
            at += 1;
        } else {
            code.extend(source[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// Code as [`code_only`] gives it, with each `#[cfg(test)] mod ... { ... }` blanked out too.
pub fn without_unit_tests(code: &str) -> String {
    let mut rest = code.to_owned();
    let mut from = 0;
    while let Some(start) = rest[from..].find("#[cfg(test)]").map(|found| from + found) {
        from = start + 1;
        let item = rest[start + "#[cfg(test)]".len()..].trim_start();
        if !(item.starts_with("mod ") || item.starts_with("pub mod ") || item.starts_with("pub(crate) mod ")) {
            continue;
        }
        if let Some(end) = end_of_braces(&rest, start) {
            let blank: String = rest[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            rest.replace_range(start..end, &blank);
        }
    }
    rest
}

/// The lines, counted from 1, in which `word` stands by itself.
pub fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let holds = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    };
    code.lines().enumerate().filter(|(_, line)| holds(line)).map(|(index, _)| index + 1).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn starts_word(source: &[char], at: usize) -> bool {
    at == 0 || !is_word(source[at - 1])
}

fn end_of_line(source: &[char], at: usize) -> usize {
    source[at..].iter().position(|c| *c == '\n').map_or(source.len(), |length| at + length)
}

fn end_of_block_comment(source: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut end = at;
    while end < source.len() {
        match (source[end], source.get(end + 1)) {
            ('/', Some('*')) => (depth, end) = (depth + 1, end + 2),
            ('*', Some('/')) => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            return end;
        }
    }
    source.len()
}

fn end_of_string(source: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < source.len() {
        match source[end] {
            '\\' => end += 2,
            '"' => return end + 1,
            _ => end += 1,
        }
    }
    source.len()
}

/// The end of a character, or `at` itself where the quote belongs to a lifetime.
fn end_of_char(source: &[char], at: usize) -> usize {
    match (source.get(at + 1), source.get(at + 2)) {
        (Some('\\'), _) => {
            let quote = source.iter().skip(at + 3).position(|c| *c == '\'');
            quote.map_or(source.len(), |length| at + 3 + length + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// The end of a raw string such as `br#"..."#`, if one starts here.
fn raw_string(source: &[char], at: usize) -> Option<usize> {
    let prefix = match source.get(at..)? {
        ['r', ..] => 1,
        ['b' | 'c', 'r', ..] => 2,
        _ => return None,
    };
    let hashes = source[at + prefix..].iter().take_while(|c| **c == '#').count();
    let body = at + prefix + hashes + 1;
    if source.get(body - 1) != Some(&'"') {
        return None;
    }
    let closes = |end: &usize| {
        source[*end] == '"' && source[*end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    Some((body..source.len()).find(closes).map_or(source.len(), |end| end + 1 + hashes))
}

fn end_of_braces(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, c) in code[from..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(from + offset + 1);
                }
            }
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_go_and_code_stays() {
        for (text, code) in [
            ("a // unsafe", "a"),
            ("a /* x /* y */ unsafe */ b", "a  b"),
            (r#"f("un\"safe") + g"#, "f() + g"),
            (r###"f(br#"un"safe"#) + r"x""###, "f() +"),
            (r"f('\'', 'x', '\u{1F600}')", "f(, , )"),
            ("fn f<'a>(x: &'a str) -> &'static str", "fn f<'a>(x: &'a str) -> &'static str"),
            ("r#type + bread", "r#type + bread"),
        ] {
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeeze(&code_only(text)), squeeze(code), "{text}");
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "one\n/* two\nthree */ \"four\nfive\"\nunsafe {}\n// unsafe\nnot_unsafe unsafe_code";
        assert_eq!(lines_with_word(&code_only(text), "unsafe"), [5]);
    }

    #[test]
    fn unit_tests_are_not_code() {
        let text = "unsafe {}\n#[cfg(test)]\nmod tests {\n fn f() { unsafe {} }\n}\nunsafe {}\n";
        assert_eq!(lines_with_word(&without_unit_tests(&code_only(text)), "unsafe"), [1, 6]);
        let elsewhere = "#[cfg(test)]\nmod tests;\nfn f() { unsafe {} }";
        assert_eq!(lines_with_word(&without_unit_tests(elsewhere), "unsafe"), [3]);
        let item = "#[cfg(test)]\nfn f() { unsafe {} }";
        assert_eq!(lines_with_word(&without_unit_tests(item), "unsafe"), [2]);
    }

    #[test]
    fn text_that_ends_too_soon_does_no_harm() {
        for text in ["\"abc", "/* abc", "r#\"abc", "'\\", "'", "r", "br#", "#[cfg(test)] mod x {"] {
            let code = code_only(text);
            assert!(code.chars().count() == text.chars().count(), "{text}");
            let _ = without_unit_tests(&code);
        }
    }
}
