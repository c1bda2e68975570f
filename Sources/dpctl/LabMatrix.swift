import ArgumentParser
import Lab

/// The asking end of a truth table, told on standard input: see `MatrixProber`.
struct LabMatrix: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "matrix", abstract: "Ask many targets at once, as often as standard input says.",
    shouldDisplay: false)

  @Option(name: .long, help: "Read this instead of standard input; a semicolon ends a line.") var script: String?

  func run() throws {
    var prober = MatrixProber()
    guard let script else {
      try prober.run { readLine() }
      return
    }
    var lines = script.split(separator: ";").makeIterator()
    try prober.run { lines.next().map(String.init) }
  }
}
