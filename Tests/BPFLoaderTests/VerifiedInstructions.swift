import Foundation

/// The file `bpf/verified-instructions`: a line for each kernel and program.
struct VerifiedInstructions {
  static let name = "bpf/verified-instructions"

  /// Of each kernel, by program.
  var counts: [String: [String: Int]] = [:]
  private var comments: [Substring] = []

  struct Change {
    var isFailure: Bool
    var text: String
  }

  private static var url: URL {
    URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../\(name)").standardized
  }

  private struct Unreadable: Error, CustomStringConvertible {
    var description: String
  }

  static func read() throws -> VerifiedInstructions {
    var file = VerifiedInstructions()
    for line in try String(contentsOf: url, encoding: .utf8).split(separator: "\n") {
      if line.hasPrefix("#") {
        file.comments.append(line)
        continue
      }
      let words = line.split(separator: " ")
      guard words.count == 3, let count = Int(words[2]) else {
        throw Unreadable(description: "\(name): no kernel, program and number: \(line)")
      }
      file.counts[String(words[0]), default: [:]][String(words[1])] = count
    }
    return file
  }

  func write() throws {
    var lines = comments.map(String.init)
    for (kernel, programs) in counts.sorted(by: { $0.key.compare($1.key, options: .numeric) == .orderedAscending }) {
      for (program, count) in programs.sorted(by: { $0.key < $1.key }) { lines.append("\(kernel) \(program) \(count)") }
    }
    // Not by rename: a virtual machine sees the folder only.
    try (lines.joined(separator: "\n") + "\n").write(to: Self.url, atomically: false, encoding: .utf8)
  }

  /// What differs by more than a tenth, and what only one of them has.
  static func changes(from old: [String: Int], to new: [String: Int]) -> [Change] {
    Set(old.keys).union(new.keys).sorted().compactMap { program in
      switch (old[program], new[program]) {
      case (let was?, let now?) where now * 10 > was * 11:
        Change(
          isFailure: true,
          text: "\(program) grew from \(was) to \(now) verified instructions, more than a tenth; where that has to be, "
            + "commit it with \(name) (scripts/verify-programs --update)")
      case (let was?, let now?) where now * 10 < was * 9:
        Change(
          isFailure: false,
          text: "\(program) shrank from \(was) to \(now) verified instructions: scripts/verify-programs --update")
      case (nil, let now?):
        Change(isFailure: true, text: "\(program), \(now) verified instructions, is missing in \(name)")
      case (let was?, nil):
        Change(isFailure: true, text: "\(program), \(was) verified instructions in \(name), is no program any more")
      default: nil
      }
    }
  }
}
