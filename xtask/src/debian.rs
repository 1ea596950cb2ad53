//! Programs from Debian packages, unpacked into `target/tools` without root and without changing the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::report;
use crate::run::{Failure, Outcome, on_path, show};

/// The first dependency of `package` whose name starts with `prefix`, such as `python3.11-minimal` of
/// `python3-minimal`.
pub(crate) fn depends(package: &str, prefix: &str, folder: &Path) -> Outcome<String> {
    let ask = |options: &[String]| {
        let text = output("apt-cache", options, &["depends", package]);
        let mut words = text.split_whitespace();
        words.find(|word| word.starts_with(prefix)).map(str::to_owned)
    };
    match ask(&[]) {
        Some(name) => Ok(name),
        None => ask(&fresh_lists(folder)?).ok_or_else(|| {
            Failure::new(format!(
                "apt-cache knows no package {package}; install what it brings"
            ))
        }),
    }
}

/// The package and the libraries it needs that this system lacks. Without the C library (two of them
/// conflict), Perl and LLVM, which PostgreSQL does not need.
pub(crate) fn with_libraries(package: &str, folder: &Path) -> Outcome<Vec<String>> {
    let ask = |options: &[String]| {
        let what = [
            "install",
            "--print-uris",
            "--yes",
            "--no-install-recommends",
            package,
        ];
        let own = own_lists(folder)?;
        let no_lock = &own[own.len() - 2..];
        let text = output("apt-get", &[no_lock, options].concat(), &what);
        Ok::<_, Failure>(packages_in(&text))
    };
    let left_out = |name: &str| {
        ["libc6", "libc-", "libllvm", "libperl"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || name.ends_with("-perl")
    };
    let is_needed = |name: &String| name == package || name.starts_with("lib") && !left_out(name);
    let mut names = ask(&[])?;
    if !names.iter().any(|name| name == package) {
        names = ask(&fresh_lists(folder)?)?;
    }
    names.retain(is_needed);
    if names.iter().any(|name| name == package) {
        return Ok(names);
    }
    Err(Failure::new(format!(
        "apt-get cannot say what the package {package} needs; install it yourself"
    )))
}

/// The names in lines as `'http://mirror/pool/x/name_1.2-3_amd64.deb' name_1.2-3_amd64.deb 1234 MD5Sum:..`.
fn packages_in(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.starts_with('\''));
    let files = lines.filter_map(|line| line.split_whitespace().nth(1));
    files
        .filter_map(|file| file.ends_with(".deb").then(|| file.split('_').next())?)
        .map(str::to_owned)
        .collect()
}

fn output(program: &str, options: &[String], what: &[&str]) -> String {
    let output = Command::new(program)
        .args(options)
        .args(what)
        .stdin(Stdio::null())
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// Downloads these Debian packages and unpacks them into `folder`, which is created completely or not at all.
pub(crate) fn unpack(packages: &[&str], folder: &Path) -> Outcome {
    let name = &packages.join(", ");
    for tool in ["apt-get", "dpkg"] {
        if on_path(tool).is_none() {
            return Err(Failure::new(format!(
                "`{tool}` is missing, so the Debian package {name} cannot be unpacked; install the server of {name} \
                 so that its program is on PATH"
            )));
        }
    }
    let work = folder.with_extension("download");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    if download(packages, &work, &[]).is_err() {
        let own = fresh_lists(folder)?;
        download(packages, &work, &own)?;
    }
    let files: Vec<PathBuf> = fs::read_dir(&work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if files.len() < packages.len() {
        return Err(Failure::new(format!(
            "apt-get reported success but left {} of the packages {name}",
            files.len()
        )));
    }
    let unpacked = work.join("unpacked");
    for package in &files {
        show(
            "unpack",
            Command::new("dpkg")
                .arg("-x")
                .arg(package)
                .arg(&unpacked)
                .stdin(Stdio::null()),
        )?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&unpacked, folder)?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn download(packages: &[&str], work: &Path, options: &[String]) -> Outcome {
    let name = packages.join(", ");
    show(
        "download",
        Command::new("apt-get")
            .args(options)
            .arg("download")
            .args(packages)
            .stdin(Stdio::null())
            .current_dir(work),
    )
    .map_err(|failure| {
        Failure::new(format!(
            "{}; the package {name} cannot be fetched: check the network and /etc/apt, or install {name} yourself",
            failure.message
        ))
    })
}

/// Options that make apt-get use its own package lists, which are fetched now because those of the system are
/// missing or outdated. Needs no root.
fn fresh_lists(folder: &Path) -> Outcome<Vec<String>> {
    report::note("the system's package lists are missing or outdated; fetching new ones into target/tools");
    let own = own_lists(folder)?;
    show(
        "package lists",
        Command::new("apt-get")
            .args(&own)
            .arg("update")
            .stdin(Stdio::null()),
    )?;
    Ok(own)
}

/// Options that make apt-get keep its state in `target/tools/apt`.
fn own_lists(folder: &Path) -> Outcome<Vec<String>> {
    let apt = folder.with_file_name("apt");
    let (lists, cache) = (apt.join("lists"), apt.join("cache"));
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(cache.join("archives").join("partial"))?;
    Ok(vec![
        "-o".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        "-o".to_owned(),
        format!("Dir::Cache={}", cache.display()),
        "-o".to_owned(),
        "APT::Sandbox::User=".to_owned(),
        "-o".to_owned(),
        "Debug::NoLocking=true".to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_what_apt_would_download() {
        let text = "Reading package lists...\n\
                    'http://m/pool/main/i/icu/libicu72_72.1-3_amd64.deb' libicu72_72.1-3_amd64.deb 9376 MD5Sum:0\n\
                    'http://m/postgresql-15_15.18-0_amd64.deb' postgresql-15_15.18-0_amd64.deb 17 SHA256:1\n";
        assert_eq!(packages_in(text), ["libicu72", "postgresql-15"]);
    }
}
