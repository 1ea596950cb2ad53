//! The demo's output; its only file that prints.
#![expect(clippy::print_stdout, reason = "the demo is there to be read")]

use std::io::IsTerminal;
use std::time::Duration;

/// Text with a colour, if stdout is a terminal.
fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The demo's name.
pub(crate) fn title(text: &str) {
    println!("\n{}\n", paint("1", text));
}

/// A fact: `name   what`.
pub(crate) fn fact(name: &str, what: &str) {
    println!("  {name:<12}{what}");
}

/// A remark below a table.
pub(crate) fn note(text: &str) {
    println!("  {}", paint("2", text));
}

/// An event, with the time since the start.
pub(crate) fn event(begun: std::time::Instant, what: &str) {
    println!(
        "  {} {what}",
        paint("36", &format!("{:7.2} s", begun.elapsed().as_secs_f64()))
    );
}

/// A subheading.
pub(crate) fn heading(text: &str) {
    println!("\n{}", paint("1", text));
}

/// A table: first column to the left, the others to the right.
pub(crate) fn table(headers: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        cells.max().unwrap_or(0).max(headers[column].len())
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        padded.collect::<Vec<_>>().join("   ")
    };
    println!("  {}", paint("2", &line(headers)));
    for row in rows {
        println!("  {}", line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}

/// A claim of the proof.
pub(crate) fn claim(text: &str, exceptions: &[String]) {
    let mark = if exceptions.is_empty() {
        paint("1;32", "holds ")
    } else {
        paint("1;31", "BROKEN")
    };
    println!("  {mark}  {text}");
    for exception in exceptions {
        println!("            {exception}");
    }
}

/// The last line.
pub(crate) fn verdict(held: bool, text: &str) {
    println!("\n{}\n", paint(if held { "1;32" } else { "1;31" }, text));
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.25 ms`, `310 us`, `2.1 s`.
pub(crate) fn time(duration: Duration) -> String {
    match duration.as_micros() {
        0 => "-".to_owned(),
        1..1000 => format!("{} us", duration.as_micros()),
        1000..1_000_000 => format!("{:.2} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}
