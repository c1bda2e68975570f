import Foundation

/// Authorities, a server's certificate for 127.0.0.1 and localhost, and a client's, made anew: they live for an hour.
package struct TestCertificates: Sendable {
  package let folder: String
  package var authorities: String { "\(folder)/ca.crt" }
  package var serverCertificate: String { "\(folder)/server.crt" }
  package var serverKey: String { "\(folder)/server.key" }
  package var clientCertificate: String { "\(folder)/client.crt" }
  package var clientKey: String { "\(folder)/client.key" }

  /// Of the Service by which a cluster's pods get to its API server: the first one of the lab's range.
  package static let serviceAddress = "10.96.0.1"

  package struct Failed: Error {}

  /// - Parameter address: one more that the server has.
  package init(folder: String, address: String = "127.0.0.1") throws {
    self.folder = folder
    try Self.openssl(
      [
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
        "-subj", "/CN=test authorities", "-keyout", "\(folder)/ca.key", "-out", authorities,
      ])
    let names = "IP:127.0.0.1,IP:\(Self.serviceAddress),IP:\(address),DNS:localhost,DNS:kubernetes"
    try issue("server", "/CN=kube-apiserver", "subjectAltName=\(names)")
    try issue("client", "/CN=sluice", "extendedKeyUsage=clientAuth")
  }

  /// A certificate takes the place of the one before.
  package func issue(_ name: String, _ subject: String, _ extensions: String) throws {
    let place = "\(folder)/\(name)"
    try Self.openssl(
      [
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
        "-keyout", "\(place).new.key", "-out", "\(place).csr",
      ])
    try Data(extensions.utf8).write(to: URL(fileURLWithPath: "\(place).ext"))
    try Self.openssl(
      [
        "x509", "-req", "-in", "\(place).csr", "-CA", authorities, "-CAkey", "\(folder)/ca.key", "-CAcreateserial",
        "-days", "1", "-extfile", "\(place).ext", "-out", "\(place).new.crt",
      ])
    for file in ["key", "crt"] { rename("\(place).new.\(file)", "\(place).\(file)") }
  }

  private static func openssl(_ arguments: [String]) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/openssl")
    process.arguments = arguments
    process.standardError = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw Failed() }
  }
}
