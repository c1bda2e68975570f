import ArgumentParser
import BPFLoader
import DataplaneModel
import Glibc
import LocalAPI
import Netlink

/// Where the kernel's part is, for what needs no agent.
struct PinOptions: ParsableArguments {
  @Option(help: "Folder of the pinned BPF maps, as the agent's --bpffs.") var bpffs = "/sys/fs/bpf/sluice"

  /// Ends the program with a word on what is missing: 4 without permission, else 1.
  func folder() throws -> PinFolder { try Self.reading { () throws(SystemError) in try PinFolder(reading: bpffs) } }

  /// nil where nothing is pinned, or the folder cannot be read.
  var folderIfThere: PinFolder? { try? PinFolder(reading: bpffs) }

  static func reading<Result>(_ body: () throws(SystemError) -> Result) throws -> Result {
    do throws(SystemError) {
      return try body()
    } catch {
      Dpctl.complain("dpctl: \(error)")
      throw ExitCode([EPERM, EACCES].contains(error.errno) ? 4 : 1)
    }
  }
}

/// Names of service ports by their numbers, from the file in which the agent keeps them.
struct ServiceNames {
  private var names: [UInt32: String] = [:]

  /// Empty where the file is not there or may not be read: numbers are shown then.
  init(stateDirectory: String) {
    guard let bytes = try? LocalFile.read("\(stateDirectory)/service-numbers") else { return }
    for line in bytes.split(separator: UInt8(ascii: "\n")) {
      let parts = line.split(separator: UInt8(ascii: "\t"), maxSplits: 1)
      guard parts.count == 2, let number = UInt32(String(decoding: parts[0], as: UTF8.self)) else { continue }
      names[number] = Terminal.printable(String(decoding: parts[1], as: UTF8.self))
    }
  }

  subscript(number: UInt32) -> String? { names[number] }
}

extension Field {
  /// `from-node` as JSON has it: `fromNode`.
  var jsonName: String {
    let parts = name.split(separator: "-")
    return (parts.first.map(String.init) ?? "")
      + parts.dropFirst().map { $0.prefix(1).uppercased() + $0.dropFirst() }.joined()
  }

  var json: JSONValue {
    switch value {
    case .number(let number): Int64(exactly: number).map { .int($0) } ?? .string("\(number)")
    case .list(let words): .array(words.map { .string($0) })
    case .flag(let isSet): .bool(isSet)
    case .text, .address, .prefix: .string("\(value)")
    }
  }
}

extension [Field] {
  var json: JSONValue { .object(JSONObject(map { ($0.jsonName, $0.json) })) }
}
