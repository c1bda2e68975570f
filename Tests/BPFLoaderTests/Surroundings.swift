import DataplaneModel
import Glibc
import Netlink
import NetworkTypes

@testable import BPFLoader

func ip(_ text: String) -> IPAddress { IPAddress(text) ?? .unspecified(.v4) }
func port(_ number: UInt16) -> Port { Port(number).unsafelyUnwrapped }
func service(_ number: Int) -> ServicePortID { ServicePortID(number).unsafelyUnwrapped }
let podMAC = MACAddress("02:00:00:00:00:02").unsafelyUnwrapped

extension [IPAddress] {
  /// The one of a family; tests have one of each.
  func of(_ family: IPFamily) -> IPAddress { first { $0.family == family } ?? .unspecified(family) }
}

/// A cgroup that this process, and nobody else, is in, and a BPF file system: made once, gone when the process ends.
enum Surroundings {
  struct Failure: Error, CustomStringConvertible {
    var description: String
  }

  private struct Places: Sendable {
    var cgroup: String
    var fileSystem: String
  }

  nonisolated(unsafe) private static var undo: [() -> Void] = []

  private static let places: Result<Places, Failure> = {
    do throws(Failure) {
      return .success(try make())
    } catch {
      return .failure(error)
    }
  }()

  static var cgroup: String { get throws { try places.get().cgroup } }

  /// A folder of a test's own in the BPF file system.
  static func pins(_ name: String) throws -> PinFolder {
    try PinFolder("\(try places.get().fileSystem)/\(name)")
  }

  private static func make() throws(Failure) -> Places {
    guard let mounts = read("/proc/self/mounts"), let own = read("/proc/self/cgroup"),
      let root = mounts.split(separator: "\n").map({ $0.split(separator: " ") }).first(where: {
        $0.count > 2 && $0[2] == "cgroup2"
      }),
      let line = own.split(separator: "\n").first(where: { $0.hasPrefix("0::") })
    else { throw Failure(description: "no cgroup2 is mounted") }
    let home = "\(root[1])\(line.dropFirst(3))"
    let cgroup = "\(root[1])/sluice-tests-\(getpid())"
    guard mkdir(cgroup, 0o755) == 0 else { throw Failure(description: "mkdir \(cgroup): \(errno)") }
    undo.append {
      write("\(getpid())", to: "\(home)/cgroup.procs")
      rmdir(cgroup)
    }
    guard write("\(getpid())", to: "\(cgroup)/cgroup.procs") else {
      throw Failure(description: "cannot enter \(cgroup): \(errno)")
    }
    let fileSystem = "/run/sluice-tests-\(getpid())"
    guard mkdir(fileSystem, 0o700) == 0, mount("bpf", fileSystem, "bpf", 0, nil) == 0 else {
      throw Failure(description: "mount bpf on \(fileSystem): \(errno)")
    }
    undo.append {
      umount2(fileSystem, CInt(MNT_DETACH))
      rmdir(fileSystem)
    }
    atexit { Surroundings.undo.forEach { $0() } }
    return Places(cgroup: cgroup, fileSystem: fileSystem)
  }

  static func read(_ path: String) -> String? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 16)
    let count = fread(&bytes, 1, bytes.count, file)
    return String(decoding: bytes.prefix(count), as: UTF8.self)
  }

  @discardableResult
  private static func write(_ text: String, to path: String) -> Bool {
    guard let file = fopen(path, "w") else { return false }
    let written = fputs(text, file) >= 0
    return fclose(file) == 0 && written
  }
}
