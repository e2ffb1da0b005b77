//! `statehouse completions`: what a shell needs to complete this program's command line.

use clap::Args;
use clap_complete::Shell;

use super::Failure;
use super::output;

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse completions bash > ~/.local/share/bash-completion/completions/statehouse
  statehouse completions zsh > ~/.zfunc/_statehouse
  statehouse completions fish > ~/.config/fish/completions/statehouse.fish")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

pub(super) fn run(completions: Completions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(completions.shell, &mut super::command(None)?, "statehouse", &mut text);
    output::write_bytes(&text)
}
